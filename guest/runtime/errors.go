//go:build linux

package runtime

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"dhow/guest/runtime/enter"
	"dhow/internal/errdefs"
)

// ExecError says that the container's program could not be executed. Create,
// Start and Exec return it, whichever notices first.
type ExecError struct {
	Path      string // the program as it was asked for, or as it was found
	Errno     syscall.Errno
	NotInPath bool // Path has no slash and no directory of $PATH holds it
}

// Error is docker's sentence: exec: "foo": executable file not found in $PATH.
func (e *ExecError) Error() string {
	switch {
	case e.NotInPath:
		return fmt.Sprintf("exec: %q: executable file not found in $PATH", e.Path)
	case e.Errno == syscall.ENOENT:
		return fmt.Sprintf("exec: %q: stat %s: no such file or directory", e.Path, e.Path)
	}
	return fmt.Sprintf("exec: %q: %s", e.Path, e.Errno.Error())
}

// Unwrap returns the errno.
func (e *ExecError) Unwrap() error { return e.Errno }

// ExitCode is what docker's shell convention makes of the error: 127 if the
// program is missing, else 126.
func (e *ExecError) ExitCode() int {
	switch e.Errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		return 127
	}
	return 126
}

// SetupError says which step of setting up a process failed.
type SetupError struct {
	Op    string // what was done, e.g. "mount proc on"
	Path  string // on what; may be empty
	Errno syscall.Errno
}

// Error is one sentence.
func (e *SetupError) Error() string {
	if e.Path == "" {
		return e.Op + ": " + e.Errno.Error()
	}
	return e.Op + " " + strconv.Quote(e.Path) + ": " + e.Errno.Error()
}

// Unwrap returns the errno.
func (e *SetupError) Unwrap() error { return e.Errno }

// reportError is the error that a failed report stands for.
func reportError(r enter.Report) error {
	no := syscall.Errno(r.Errno)
	switch r.Code {
	case enter.CodeExec:
		return &ExecError{Path: r.Path, Errno: no}
	case enter.CodeNotInPath:
		return &ExecError{Path: r.Path, Errno: syscall.ENOENT, NotInPath: true}
	case enter.CodeNoUser:
		return errdefs.New(errdefs.Invalid, "unable to find user %s: no matching entries in passwd file", r.Path)
	case enter.CodeNoGroup:
		return errdefs.New(errdefs.Invalid, "unable to find group %s: no matching entries in group file", r.Path)
	case enter.CodeBadUser:
		return errdefs.New(errdefs.Invalid, "uids and gids must be in range 0-2147483647")
	case enter.CodeCwdEscaped:
		return errdefs.New(errdefs.Denied, "current working directory is outside of container mount namespace root -- possible container breakout detected")
	}
	return &SetupError{Op: r.Op, Path: r.Path, Errno: no}
}

var errGone = errors.New("the process ended while it was being set up")
