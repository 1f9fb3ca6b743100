// Package control serves proto/control in the guest: the few verbs that the
// host calls and that the Docker API cannot carry.
//
// guest/agent makes a Server, gives it what the verbs need as functions, and
// hands it connections whose preamble is done. The package knows nothing of
// containers, vsock or init.
package control
