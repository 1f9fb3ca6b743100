package errdefs

import (
	"context"
	"errors"
	"fmt"
)

// Class says what kind of failure an error is, whatever its text.
type Class string

// The classes. An error with none is Internal.
const (
	Invalid       Class = "invalid"       // the request is malformed or contradicts itself
	NotFound      Class = "not found"     // the named thing does not exist
	Conflict      Class = "conflict"      // the thing's state forbids the request
	NotModified   Class = "not modified"  // the thing is already as asked
	Denied        Class = "denied"        // credentials or policy refuse it
	Unavailable   Class = "unavailable"   // a peer cannot be reached or did not answer in time
	Unimplemented Class = "unimplemented" // dhow does not do this
	Canceled      Class = "canceled"      // the caller went away
	Internal      Class = "internal"      // anything else: a fault of dhow or of its machine
)

// Error is a class, one sentence for the user, and the cause for the log (nil
// if the sentence says it all).
type Error struct {
	Class    Class
	Sentence string
	Cause    error
}

// Error returns the sentence, and the cause behind it.
func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Sentence
	}
	return e.Sentence + ": " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// New returns an error of class c whose sentence is formatted as by fmt.Sprintf.
func New(c Class, format string, args ...any) error {
	return &Error{Class: c, Sentence: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of class c with its own sentence; cause is for the log
// and for errors.Is. It returns nil if cause is nil.
func Wrap(c Class, cause error, format string, args ...any) error {
	if cause == nil {
		return nil
	}
	return &Error{Class: c, Sentence: fmt.Sprintf(format, args...), Cause: cause}
}

// ClassOf returns the class of the outermost *Error in err's chain, Canceled
// for a bare context.Canceled, Unavailable for a bare
// context.DeadlineExceeded, and Internal for all else. It returns "" for nil.
func ClassOf(err error) Class {
	if err == nil {
		return ""
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Class
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable
	}
	return Internal
}

// Is reports whether err is of class c.
func Is(err error, c Class) bool { return err != nil && ClassOf(err) == c }

// Sentence returns what the user is shown: the text of the outermost *Error
// in the chain without its cause, or the whole text of an error that has none.
func Sentence(err error) string {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Sentence
	}
	return err.Error()
}
