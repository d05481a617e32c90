"""What a step costs on a random LLaMA; shape and suite are its groups."""
