"""Grammar-constrained generation: speak, transcribe, continue; see `speech_model.load`."""
