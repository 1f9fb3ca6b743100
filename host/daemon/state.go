package daemon

import (
	"fmt"
	"slices"

	"dhow/host/client"
)

// transitions lists, for each state, the states that may follow.
var transitions = map[client.State][]client.State{
	client.Stopped:  {client.Starting},
	client.Starting: {client.Running, client.Failed, client.Stopped},
	client.Running:  {client.Stopping, client.Failed, client.Stopped}, // the last two by itself
	client.Stopping: {client.Stopped, client.Failed},
	client.Failed:   {client.Starting},
}

// transition is the only place where the state changes. m.mu is held. A
// transition that is not in the table is a fault of this package.
func (m *machine) transition(to client.State) {
	if !slices.Contains(transitions[m.state], to) {
		panic(fmt.Sprintf("daemon: the machine is %s and cannot become %s", m.state, to))
	}
	m.config.Log.Info("machine", "state", to, "was", m.state)
	m.state = to
}
