package steps_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"dhow/internal/steps"
)

func list(trace *[]string, fail string) []steps.Step {
	var l []steps.Step
	for _, n := range []string{"mount", "network", "process"} {
		l = append(l, steps.Step{
			Name: n,
			Do: func(context.Context) error {
				if n == fail {
					return errors.New("boom")
				}
				*trace = append(*trace, n)
				return nil
			},
			Undo: func(ctx context.Context) error {
				*trace = append(*trace, "undo "+n)
				return ctx.Err()
			},
		})
	}
	return l
}

func TestFailureUndoesWhatWasDoneInReverse(t *testing.T) {
	var trace []string
	err := steps.Run(t.Context(), list(&trace, "process"))
	if err == nil || !strings.HasPrefix(err.Error(), "process: boom") {
		t.Fatalf("err = %v", err)
	}
	if want := []string{"mount", "network", "undo network", "undo mount"}; !slices.Equal(trace, want) {
		t.Errorf("trace = %v, want %v", trace, want)
	}
}

func TestCanceledContextStopsBeforeTheNextStepAndStillUndoes(t *testing.T) {
	var trace []string
	ctx, cancel := context.WithCancel(t.Context())
	l := list(&trace, "")
	do := l[0].Do
	l[0].Do = func(c context.Context) error { cancel(); return do(c) }
	if err := steps.Run(ctx, l); !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
	if want := []string{"mount", "undo mount"}; !slices.Equal(trace, want) {
		t.Errorf("trace = %v, want %v (an undo on a dead context would have failed)", trace, want)
	}
}
