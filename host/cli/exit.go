package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
)

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig os.Signal }

func (e signalError) Error() string { return e.sig.String() }

// notifyTermination returns a context that the first SIGINT or SIGTERM ends,
// with a signalError as its cause.
func notifyTermination(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-ch:
			cancel(signalError{s})
		case <-ctx.Done():
		}
		signal.Stop(ch)
	}()
	return ctx, func() { cancel(nil); <-done }
}

// exitOnThirdSignal ends the program at the third signal, for a command that
// does not end with its context, and puts the terminal back first.
func exitOnThirdSignal(ctx context.Context, docker *command.DockerCli) {
	<-ctx.Done()
	var sig signalError
	if !errors.As(context.Cause(ctx), &sig) {
		return
	}
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	<-ch
	<-ch
	fmt.Fprint(docker.Err(), "\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n")
	docker.In().RestoreTerminal()
	docker.Out().RestoreTerminal()
	docker.Err().RestoreTerminal()
	os.Exit(1)
}

// exitCode maps a command's error to the program's exit code, the one place
// that does: a command's own status (a container's exit code, 125 for a wrong
// flag), 128+n for signal n, else 1.
func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	var sig signalError
	if errors.As(context.Cause(ctx), &sig) {
		if s, ok := sig.sig.(syscall.Signal); ok {
			return 128 + int(s)
		}
	}
	return status(err)
}

// status is the exit code that an error carries, else 1.
func status(err error) int {
	var s dockercli.StatusError
	if errors.As(err, &s) && s.StatusCode != 0 {
		return s.StatusCode
	}
	return 1
}
