"""Reads a hub's metrics as Prometheus' own library does, and prints the samples as JSON."""

import json
import sys
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

address, token = sys.argv[1:]
with urlopen(Request(address, headers={"Authorization": f"Bearer {token}"}), timeout=60) as answer:
    text = answer.read().decode()
samples = {}
for family in text_string_to_metric_families(text):
    assert family.documentation, f"{family.name} has no help"
    assert family.type in ("counter", "gauge"), f"{family.name} is of type {family.type}"
    for sample in family.samples:
        key = ",".join([sample.name, *(f"{label}={value}" for label, value in sorted(sample.labels.items()))])
        assert key not in samples, f"{key} is there twice"
        samples[key] = sample.value
print(json.dumps(samples))
