// Package steps runs work of several steps, each with its undo.
//
// Start of a container, start of a machine and the like are lists of named
// steps: a reader sees the whole sequence in one place, a failure names the
// step it happened in and undoes the steps before it in reverse order, and a
// test can stop the list after any step.
package steps
