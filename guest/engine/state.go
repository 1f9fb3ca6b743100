//go:build linux

package engine

import (
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// State is where a container is in its life, and how it got there. It is part
// of the persisted record; only transition changes Status.
type State struct {
	Status     container.ContainerState
	Pid        int `json:",omitempty"`
	ExitCode   int
	Error      string `json:",omitempty"` // of the last start that failed
	OOMKilled  bool   `json:",omitempty"`
	StartedAt  time.Time
	FinishedAt time.Time
}

// change is what moves a container from one status to another.
type change string

const (
	evStart   change = "start"   // its process runs
	evExit    change = "exit"    // its process ended
	evPause   change = "pause"   // its cgroup was frozen
	evUnpause change = "unpause" // and thawed
	evRestart change = "restart" // its process ended and comes again after a delay
	evRemove  change = "remove"  // removal began
	evFail    change = "fail"    // removal failed
)

// transitions is the whole life of a container. A failed start is no
// transition: the container stays what it was, with Error and ExitCode set.
var transitions = map[container.ContainerState]map[change]container.ContainerState{
	container.StateCreated: {
		evStart: container.StateRunning, evRemove: container.StateRemoving,
	},
	container.StateRunning: {
		evExit: container.StateExited, evRestart: container.StateRestarting, evPause: container.StatePaused,
	},
	container.StatePaused: {
		evUnpause: container.StateRunning, evExit: container.StateExited, evRestart: container.StateRestarting,
	},
	container.StateRestarting: {
		evStart: container.StateRunning, evExit: container.StateExited,
	},
	container.StateExited: {
		evStart: container.StateRunning, evRemove: container.StateRemoving,
	},
	container.StateRemoving: {evFail: container.StateDead},
	container.StateDead:     {evRemove: container.StateRemoving},
}

// transition applies ev, or returns an error that names both and changes
// nothing.
func (s *State) transition(ev change) error {
	to, ok := transitions[s.Status][ev]
	if !ok {
		return fmt.Errorf("container state: no %q from %q", ev, s.Status)
	}
	s.Status = to
	return nil
}

// alive reports what dockerd calls running: there is a process, or there will
// be one again without anybody's asking.
func (s *State) alive() bool {
	switch s.Status {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return true
	}
	return false
}

// text is the STATUS column of `ps`, in dockerd's words, at the time now.
func (s *State) text(now time.Time) string {
	since := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch s.Status {
	case container.StateRunning:
		return "Up " + since(s.StartedAt)
	case container.StatePaused:
		return "Up " + since(s.StartedAt) + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, since(s.FinishedAt))
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	case container.StateCreated:
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, since(s.FinishedAt))
}

// api is the State of an inspect.
func (s *State) api() *container.State {
	return &container.State{
		Status:     s.Status,
		Running:    s.alive(),
		Paused:     s.Status == container.StatePaused,
		Restarting: s.Status == container.StateRestarting,
		OOMKilled:  s.OOMKilled,
		Dead:       s.Status == container.StateDead,
		Pid:        s.Pid,
		ExitCode:   s.ExitCode,
		Error:      s.Error,
		StartedAt:  s.StartedAt.UTC().Format(time.RFC3339Nano),
		FinishedAt: s.FinishedAt.UTC().Format(time.RFC3339Nano),
	}
}
