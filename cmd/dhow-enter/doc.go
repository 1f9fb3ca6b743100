// Command dhow-enter is the program between the clone of a container process
// and its execve. It is started by the agent only, speaks the protocol of
// package enter on file descriptor 3, and is small because its own start is on
// the hot path of every container.
package main
