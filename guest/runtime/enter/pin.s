// Makes the compiler take the declarations without a body in pin.go.
