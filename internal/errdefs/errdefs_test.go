package errdefs_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"dhow/internal/errdefs"
)

func TestClassAndSentenceSurviveWrapping(t *testing.T) {
	cause := fs.ErrNotExist
	err := fmt.Errorf("start %q: %w", "web", errdefs.Wrap(errdefs.NotFound, cause, "No such container: %s", "web"))
	if got := errdefs.ClassOf(err); got != errdefs.NotFound {
		t.Errorf("class = %q", got)
	}
	if got, want := errdefs.Sentence(err), "No such container: web"; got != want {
		t.Errorf("sentence = %q, want %q", got, want)
	}
	if got, want := err.Error(), `start "web": No such container: web: file does not exist`; got != want {
		t.Errorf("log text = %q, want %q", got, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
}

func TestClassOfBareErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want errdefs.Class
	}{
		{nil, ""},
		{errors.New("x"), errdefs.Internal},
		{fmt.Errorf("copy: %w", context.Canceled), errdefs.Canceled},
		{fmt.Errorf("dial: %w", context.DeadlineExceeded), errdefs.Unavailable},
		{errdefs.Wrap(errdefs.Conflict, context.Canceled, "busy"), errdefs.Conflict},
	} {
		if got := errdefs.ClassOf(c.err); got != c.want {
			t.Errorf("ClassOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
	if errdefs.Wrap(errdefs.Invalid, nil, "x") != nil {
		t.Error("Wrap(nil) is not nil")
	}
}
