package vm

import (
	"slices"
	"sync"

	"dhow/internal/errdefs"
)

// State is where a machine is in its one life.
type State string

// The states. Only Stopped is final.
const (
	Created  State = "created"  // New was called, nothing else
	Starting State = "starting" // Start is at work
	Running  State = "running"  // the guest's CPUs run
	Stopping State = "stopping" // it powers off, or is being killed; its resources are still held
	Stopped  State = "stopped"  // it has ended and everything is released
)

// transitions lists, for each state, the states that may follow.
var transitions = map[State][]State{
	Created:  {Starting, Stopping, Stopped}, // without Starting: killed before it was started
	Starting: {Running, Stopping, Stopped},
	Running:  {Stopping, Stopped},
	Stopping: {Stopped},
	Stopped:  {},
}

// Life is the state of one machine with its end: the part of the Machine
// contract that all drivers share. The zero value is not usable; see NewLife.
// It is safe for concurrent use.
type Life struct {
	mu    sync.Mutex
	state State
	err   error
	done  chan struct{}
}

// NewLife returns the life of a machine that is Created.
func NewLife() *Life { return &Life{state: Created, done: make(chan struct{})} }

// transition is the only place where the state changes. l.mu is held.
func (l *Life) transition(to State) error {
	if !slices.Contains(transitions[l.state], to) {
		return errdefs.New(errdefs.Conflict, "the machine is %s and cannot become %s", l.state, to)
	}
	l.state = to
	return nil
}

// To moves the machine to a state other than Stopped (see End). The error is
// of class Conflict and says both states.
func (l *Life) To(to State) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.transition(to)
}

// Abandon moves a machine that was never started to Stopping, so that it can
// not be started any more, and reports whether it did.
func (l *Life) Abandon() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == Created && l.transition(Stopping) == nil
}

// End moves the machine to Stopped, keeps err for Err and closes Done. It is
// called once all resources are released. Calls after the first do nothing.
func (l *Life) End(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.transition(Stopped) == nil {
		l.err = err
		close(l.done)
	}
}

// State returns the present state.
func (l *Life) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Done is closed when the machine has ended.
func (l *Life) Done() <-chan struct{} { return l.done }

// Err returns what End was given; nil while the machine has not ended.
func (l *Life) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
