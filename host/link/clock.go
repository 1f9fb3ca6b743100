package link

import (
	"context"
	"time"

	"dhow/proto/control"
)

const (
	// clockInterval is how often the clock is looked at while nothing happens.
	// The timer stands still while the host sleeps, so this is the longest that
	// an idle guest has a wrong clock after it.
	clockInterval = 30 * time.Second
	// clockJump is by how much the host's wall clock must have moved against
	// the clock that stands still in sleep, to be set anew.
	clockJump = 500 * time.Millisecond
	// clockAge is when the guest's clock is set without a jump: two
	// oscillators drift apart by seconds in a day.
	clockAge = time.Hour
)

// clock is when the guest's was last set, by both of the host's clocks.
type clock struct {
	wall  time.Time
	awake time.Duration
}

// stale reports whether the guest's clock must be set again.
func (c clock) stale(wall time.Time, awake time.Duration) bool {
	if c.wall.IsZero() {
		return true
	}
	passed := awake - c.awake
	jump := wall.Sub(c.wall) - passed
	return jump > clockJump || jump < -clockJump || passed > clockAge
}

// keepClock sets the guest's clock if the host has slept or was set since.
func (l *Link) keepClock(ctx context.Context, s *session) error {
	wall, awake := l.config.Now()
	l.mu.Lock()
	stale := l.clock.stale(wall, awake)
	l.mu.Unlock()
	if !stale {
		return nil
	}
	return l.setClock(ctx, s)
}

func (l *Link) setClock(ctx context.Context, s *session) error {
	wall, awake := l.config.Now()
	if err := l.call(ctx, s, control.VerbSetClock, control.SetClock{Time: wall}, nil); err != nil {
		return err
	}
	l.mu.Lock()
	l.clock = clock{wall: wall, awake: awake}
	l.mu.Unlock()
	return nil
}
