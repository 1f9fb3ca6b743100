// Package plan writes down what the kernel should hold for a network, as
// plain data: links, addresses, and a firewall table. It is pure, so that a
// test can read the whole outcome as text; package apply executes it.
package plan
