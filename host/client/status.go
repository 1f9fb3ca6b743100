package client

import (
	"dhow/internal/errdefs"
	"dhow/proto/control"
)

// State of a machine, as dhowd tells it.
type State string

// The states. Failed is stopped with an error to show; the next start or
// docker request boots again.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Stopping State = "stopping"
	Failed   State = "failed"
)

// Status is the answer to GET /v1/status. Sizes in bytes, durations in ns.
type Status struct {
	Machine      string `json:"machine"`
	State        State  `json:"state"`
	Step         string `json:"step,omitempty"`  // of a start or stop in progress
	Error        string `json:"error,omitempty"` // why the state is failed, or why the machine ended by itself
	Version      string `json:"version"`         // dhowd's
	PID          int    `json:"pid"`             // dhowd's
	Driver       string `json:"driver"`
	Acceleration string `json:"acceleration,omitempty"` // "kvm", "vz", "tcg" …; known once the machine was started

	CPUs     int   `json:"cpus"`
	Memory   int64 `json:"memory"`
	DiskSize int64 `json:"disk_size"` // as the guest sees it
	DiskUsed int64 `json:"disk_used"` // blocks that the file takes on the host

	DockerSocket string `json:"docker_socket"`
	ConsoleLog   string `json:"console_log"`
	Log          string `json:"log"`

	Uptime int64 `json:"uptime_ns,omitempty"` // since the agent answered
	Boot   int64 `json:"boot_ns,omitempty"`   // from the request to start until the agent answered
	// BootSteps are the host's steps and, with the prefix "guest: ", the guest's.
	// At is when the step was done: the host's count from the request to start,
	// the guest's from its kernel's start.
	BootSteps []BootStep `json:"boot_steps,omitempty"`

	Clients int            `json:"clients"` // docker connections that are open
	Kernel  string         `json:"kernel,omitempty"`
	Guest   *control.Stats `json:"guest,omitempty"` // while running
}

// BootStep is a named point of the last boot.
type BootStep struct {
	Name string `json:"name"`
	At   int64  `json:"at"` // ns
}

// Event is one line of the stream that answers start, stop and quit.
type Event struct {
	Step  string        `json:"step,omitempty"`  // what is being done now
	Done  bool          `json:"done,omitempty"`  // it has been done
	Error string        `json:"error,omitempty"` // it has failed
	Class errdefs.Class `json:"class,omitempty"` // of Error
}
