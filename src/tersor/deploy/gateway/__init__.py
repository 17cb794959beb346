"""The gateway: OpenAI's protocol and the Open Inference Protocol before engines, with a second variant behind each."""
