package steps

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is one named part of a longer piece of work. Undo takes back what Do
// did; it is nil where there is nothing to take back, and is not called for a
// Do that failed: a failing Do leaves nothing behind.
type Step struct {
	Name string
	Do   func(context.Context) error
	Undo func(context.Context) error
}

// UndoTimeout bounds the undoing of all steps of one list.
const UndoTimeout = 15 * time.Second

// Run does the steps in order. When one fails, or ctx ends before it, the ones
// done are undone in reverse order, on a context that ctx's end does not
// cancel and that lasts UndoTimeout. The error names the failed step and wraps
// its error, joined with those of failed undos.
func Run(ctx context.Context, list []Step) error {
	for i, s := range list {
		err := ctx.Err()
		if err == nil {
			err = s.Do(ctx)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.Name, err), Undo(ctx, list[:i]))
		}
	}
	return nil
}

// Undo undoes steps that were done, last first. Every undo is tried; their
// errors are joined.
func Undo(ctx context.Context, done []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	var errs []error
	for i := len(done) - 1; i >= 0; i-- {
		if u := done[i].Undo; u != nil {
			if err := u(ctx); err != nil {
				errs = append(errs, fmt.Errorf("undo %s: %w", done[i].Name, err))
			}
		}
	}
	return errors.Join(errs...)
}
