"""What is on disk: tar shards, their index, the manifest. docs/format.md is the specification."""
