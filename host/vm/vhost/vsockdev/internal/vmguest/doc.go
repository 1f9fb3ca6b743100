// Command vmguest is PID 1 of the machine in which vsockdev's VM test runs: it
// loads the modules in /modules and serves the ports of package ports. It ends
// with the machine.
package main
