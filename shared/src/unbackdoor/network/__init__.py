"""What is known of a network, whatever it is: its forms, outputs, gradients, statistics, and the way back."""
