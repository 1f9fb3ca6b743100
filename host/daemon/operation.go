package daemon

import (
	"context"
	"sync"
)

// operation is a start or stop in progress. Any number of callers follow it.
type operation struct {
	cancel context.CancelFunc // asks it to end early
	force  func()             // of a stop: pull the plug; nil for a start

	mu      sync.Mutex
	steps   []string
	changed chan struct{} // closed when steps or ended change
	ended   bool
	err     error
}

func newOperation(cancel context.CancelFunc) *operation {
	return &operation{cancel: cancel, changed: make(chan struct{})}
}

// step tells the followers what is being done now.
func (o *operation) step(name string) {
	o.update(func() { o.steps = append(o.steps, name) })
}

// end tells the followers that it is over.
func (o *operation) end(err error) {
	o.update(func() { o.ended, o.err = true, err })
}

func (o *operation) update(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	close(o.changed)
	o.changed = make(chan struct{})
}

// last returns the step in progress.
func (o *operation) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.steps) == 0 {
		return ""
	}
	return o.steps[len(o.steps)-1]
}

// follow waits for the end and returns its error, or ctx's. progress (nil for
// none) is told every step, those before the call included.
func (o *operation) follow(ctx context.Context, progress func(string)) error {
	for seen := 0; ; {
		o.mu.Lock()
		steps, changed, ended, err := o.steps, o.changed, o.ended, o.err
		o.mu.Unlock()
		for ; seen < len(steps); seen++ {
			if progress != nil {
				progress(steps[seen])
			}
		}
		if ended {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
