"""The agent near the devices: MQTT endpoint, event log on SQLite, uplink to the core."""
