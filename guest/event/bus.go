package event

import (
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

const (
	// History is how many past events the bus keeps (dockerd's figure).
	History = 256
	// Backlog is how many events a subscriber may be behind before it is cut off:
	// a client that stopped reading must not hold the agent's memory.
	Backlog = 64 << 10
)

// Bus distributes events to subscribers. The zero value is ready to use, and
// safe for concurrent use. Publish never blocks.
type Bus struct {
	mu   sync.Mutex
	past []events.Message // oldest first, at most History
	subs map[*Subscription]struct{}
	last int64 // UnixNano of the last event: times never go back or repeat
}

// Publish sends an event of type t now. scope is "local".
func (b *Bus) Publish(t events.Type, a events.Action, id string, attributes map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now().UTC()
	if n := now.UnixNano(); n > b.last {
		b.last = n
	} else {
		b.last++
		now = time.Unix(0, b.last).UTC()
	}
	m := events.Message{
		Type: t, Action: a, Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
		Actor: events.Actor{ID: id, Attributes: attributes},
	}
	if len(b.past) == History {
		b.past = append(b.past[:0], b.past[1:]...)
	}
	b.past = append(b.past, m)
	for s := range b.subs {
		s.add(m)
	}
}

// Subscribe begins a subscription. If since is not zero, the kept events from
// that moment on come first; none is lost or doubled between past and present.
// The caller calls Close.
func (b *Bus) Subscribe(since time.Time) *Subscription {
	s := &Subscription{bus: b, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !since.IsZero() {
		for _, m := range b.past {
			if m.TimeNano >= since.UnixNano() {
				s.queue = append(s.queue, m)
			}
		}
	}
	if len(s.queue) > 0 {
		s.wake <- struct{}{}
	}
	if b.subs == nil {
		b.subs = map[*Subscription]struct{}{}
	}
	b.subs[s] = struct{}{}
	return s
}

// Listeners returns the number of subscriptions.
func (b *Bus) Listeners() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

// Subscription is one reader's place in the stream.
type Subscription struct {
	bus  *Bus
	wake chan struct{} // a token: Take has something to give

	mu    sync.Mutex
	queue []events.Message
	lost  bool
}

// Ready receives when Take has events to give, or the reader was cut off.
func (s *Subscription) Ready() <-chan struct{} { return s.wake }

// Take returns the events since the last call, oldest first. ok is false
// when the reader fell more than Backlog behind and was cut off.
func (s *Subscription) Take() (list []events.Message, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, s.queue = s.queue, nil
	return list, !s.lost
}

// Close ends the subscription. It may be called twice.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	delete(s.bus.subs, s)
}

// add is called with the bus's lock held.
func (s *Subscription) add(m events.Message) {
	s.mu.Lock()
	if len(s.queue) >= Backlog {
		s.lost = true
		delete(s.bus.subs, s)
	} else {
		s.queue = append(s.queue, m)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
