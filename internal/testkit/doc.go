// Package testkit holds helpers that tests of several parts share: short
// temporary directories for unix sockets, a check for goroutines left behind, a
// log that goes to the test, and Agent, a guest's side of proto/control for
// tests of the host.
//
// Only tests import it. It imports proto/control and nothing else of ours.
package testkit
