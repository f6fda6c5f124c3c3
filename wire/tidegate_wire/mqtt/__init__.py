"""MQTT 3.1.1 and 5: packets, sessions and topic filters (sans-IO), and the asyncio endpoint around them."""
