// Package test holds the end-to-end scenarios: what a person types, against the
// real image in a real machine, with our command line and with the stock docker
// client. They are the tests named TestVM (see `make test-vm`); the scripts are
// in testdata, in the form of rogpeppe's testscript.
package test
