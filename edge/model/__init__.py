"""The network: one config, one network for StableLM and Llama, loading an artefact."""
