// Package errdefs holds the error classes that every part of dhow shares.
//
// An error is a class, a sentence for the user and a cause for the log. The
// class is set where the thing is looked up; the layers above add context with
// %w. The API maps a class to an HTTP status in one function, the CLI to an
// exit code in one function. Nothing branches on an error's text.
//
// It is a leaf: it imports only the standard library.
package errdefs
