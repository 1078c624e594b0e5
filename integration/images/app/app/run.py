#!/usr/bin/python3
"""The sample application: prints a greeting and the sum of its data."""
import json
import pathlib

here = pathlib.Path(__file__).parent
total = sum(json.loads((here / "settings.json").read_text())["numbers"])
print("hello from the image, the sum is", total)
