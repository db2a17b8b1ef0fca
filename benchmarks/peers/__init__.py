"""Other job systems on the same store, each with the language and the settings that it asks for."""
