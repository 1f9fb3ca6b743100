//go:build linux

package agent

import (
	"context"

	"dhow/guest/engine"
	"dhow/guest/network"
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

// networkAdapter gives the network manager the engine's interface.
type networkAdapter struct{ m *network.Manager }

func (n networkAdapter) Attach(ctx context.Context, a engine.Attach) (engine.Endpoint, error) {
	e, err := n.m.Attach(ctx, network.Attach(a))
	return engine.Endpoint(e), err
}

func (n networkAdapter) Detach(ctx context.Context, containerID string) error {
	return n.m.Detach(ctx, containerID)
}

func (n networkAdapter) Networks() []engine.NetworkInfo {
	var list []engine.NetworkInfo
	for _, i := range n.m.Networks() {
		list = append(list, engine.NetworkInfo{ID: i.ID, Name: i.Name, Driver: i.Driver, Scope: i.Scope, Subnet: i.Subnet, Gateway: i.Gateway, Created: i.Created})
	}
	return list
}
