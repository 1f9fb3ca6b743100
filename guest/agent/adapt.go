//go:build linux

package agent

import (
	"context"

	"dhow/guest/engine"
	"dhow/guest/runtime"
)

// runtimeAdapter gives the runtime the engine's interfaces: Go's methods do not
// vary with the types that they return.
type runtimeAdapter struct{ *runtime.Runtime }

func (r runtimeAdapter) Create(ctx context.Context, c runtime.CreateConfig) (engine.Task, error) {
	t, err := r.Runtime.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	return task{t}, nil
}

type task struct{ *runtime.Container }

func (t task) Exec(ctx context.Context, c runtime.ExecConfig) (engine.Process, error) {
	p, err := t.Container.Exec(ctx, c)
	if err != nil {
		return nil, err
	}
	return p, nil
}
