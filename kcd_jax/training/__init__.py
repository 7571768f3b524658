"""The run, its loop, its pure step and its ledger."""
