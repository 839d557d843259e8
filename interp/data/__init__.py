"""What models are asked and taught: facts, texts and questions in many languages."""
