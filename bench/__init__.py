"""Measurements of the real processes, beside mosquitto on the same machine in the same run.

`python -m bench` runs all of them, `python -m bench puback latency` only some; each prints its rows and writes
`bench/results/NAME.json` with the machine's facts beside the numbers.
"""
