// Command init is package probe as PID 1 of a machine under test: it loads the
// modules that it finds in /modules, says on the console what it sees of the
// machine, and serves. It ends with the machine.
package main
