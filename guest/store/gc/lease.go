//go:build linux

package gc

import "sync"

// Leases is the set of things in flight.
type Leases struct {
	mu       sync.Mutex
	held     map[string]int
	sweeping int
	retired  map[string]struct{} // let go of while a sweep ran
}

// NewLeases returns an empty set.
func NewLeases() *Leases {
	return &Leases{held: make(map[string]int), retired: make(map[string]struct{})}
}

// Lease holds things for one piece of work. It may be used by many goroutines.
type Lease struct {
	l    *Leases
	held map[string]struct{} // guarded by l.mu
}

// Take starts a lease.
func (l *Leases) Take() *Lease { return &Lease{l: l, held: make(map[string]struct{})} }

// Hold protects a thing from now on, whether it exists yet or not.
func (le *Lease) Hold(name string) {
	le.l.mu.Lock()
	defer le.l.mu.Unlock()
	if _, ok := le.held[name]; !ok {
		le.held[name] = struct{}{}
		le.l.held[name]++
	}
}

// Release ends the lease. What is to stay must have its record by now. It may
// be called twice.
func (le *Lease) Release() {
	le.l.mu.Lock()
	defer le.l.mu.Unlock()
	for name := range le.held {
		if le.l.held[name]--; le.l.held[name] == 0 {
			delete(le.l.held, name)
			if le.l.sweeping > 0 {
				le.l.retired[name] = struct{}{}
			}
		}
	}
	clear(le.held)
}

// Sweep runs fn, which looks for things without a record. It removes them by
// Collect.
func (l *Leases) Sweep(fn func() error) error {
	l.mu.Lock()
	l.sweeping++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.sweeping--; l.sweeping == 0 {
			clear(l.retired)
		}
	}()
	return fn()
}

// Collect calls remove with a test for what must stay. Nobody can begin to
// hold anything until remove returns, so it must not take long, and must not
// use leases.
func (l *Leases) Collect(remove func(held func(name string) bool) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return remove(func(name string) bool {
		_, retired := l.retired[name]
		return l.held[name] > 0 || retired
	})
}
