package event

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
)

func TestPastAndPresentMeetWithoutGapOrDouble(t *testing.T) {
	var b Bus
	start := time.Now()
	const n = 200
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			b.Publish(events.ContainerEventType, events.ActionStart, fmt.Sprint(i), nil)
		}
	})
	for b.seen() == 0 {
		time.Sleep(time.Microsecond)
	}
	s := b.Subscribe(start)
	defer s.Close()
	wg.Wait()
	var got []events.Message
	for len(got) < n {
		<-s.Ready()
		list, ok := s.Take()
		if !ok {
			t.Fatal("cut off")
		}
		got = append(got, list...)
	}
	for i, m := range got {
		if m.Actor.ID != fmt.Sprint(i) {
			t.Fatalf("event %d is of %s", i, m.Actor.ID)
		}
		if i > 0 && m.TimeNano <= got[i-1].TimeNano {
			t.Fatalf("time of event %d does not come after its predecessor's", i)
		}
	}
}

func (b *Bus) seen() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.past)
}

func TestHistoryIsBounded(t *testing.T) {
	var b Bus
	start := time.Now()
	for i := range History + 10 {
		b.Publish(events.ImageEventType, events.ActionPull, fmt.Sprint(i), nil)
	}
	s := b.Subscribe(start)
	defer s.Close()
	list, _ := s.Take()
	if len(list) != History || list[0].Actor.ID != "10" {
		t.Errorf("%d events, first %q", len(list), list[0].Actor.ID)
	}
}

func TestAReaderThatDoesNotReadIsCutOff(t *testing.T) {
	var b Bus
	s := b.Subscribe(time.Time{})
	for range Backlog + 1 {
		b.Publish(events.ImageEventType, events.ActionPull, "x", nil)
	}
	if b.Listeners() != 0 {
		t.Error("still subscribed")
	}
	<-s.Ready()
	if list, ok := s.Take(); ok || len(list) != Backlog {
		t.Errorf("%d events, ok %v", len(list), ok)
	}
	s.Close()
}

func TestCloseUnsubscribes(t *testing.T) {
	var b Bus
	s := b.Subscribe(time.Time{})
	s.Close()
	s.Close()
	b.Publish(events.ImageEventType, events.ActionPull, "x", nil)
	if list, _ := s.Take(); len(list) != 0 || b.Listeners() != 0 {
		t.Error("a closed subscription still receives")
	}
}
