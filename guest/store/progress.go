//go:build linux

package store

import (
	"sync"
	"time"
)

// Progress is a step of a pull or load, in docker's words. ID is the short
// digest of a layer, or "" for a message about the whole; Current and Total
// are bytes, 0 where there is nothing to count.
type Progress struct {
	ID, Action     string
	Current, Total int64
}

// The actions that Pull and Load report of a layer, in this order; a layer that
// the store has is "Already exists" and nothing else.
const (
	actionStart      = "Pulling fs layer"
	actionWaiting    = "Waiting"
	actionDownload   = "Downloading"
	actionVerify     = "Verifying Checksum"
	actionDownloaded = "Download complete"
	actionExtract    = "Extracting"
	actionComplete   = "Pull complete"
	actionExists     = "Already exists"
	actionLoading    = "Loading layer"
)

// progressInterval is how often the bytes of one layer are reported.
const progressInterval = 100 * time.Millisecond

// feed hands progress to one caller's function, from one goroutine of its own:
// a client that reads slowly delays neither the download nor the others who
// wait for it. Of several byte counts of one layer only the latest is kept;
// no action is lost.
type feed struct {
	to     func(Progress)
	mu     sync.Mutex
	queue  []Progress
	wake   chan struct{}
	closed bool
	done   chan struct{}
}

// newFeed starts a feed; to may be nil.
func newFeed(to func(Progress)) *feed {
	f := &feed{to: to, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if to == nil {
		close(f.done)
		return f
	}
	go f.run()
	return f
}

func (f *feed) report(p Progress) {
	if f.to == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.queue) - 1; i >= 0 && p.Total > 0; i-- {
		if f.queue[i].ID == p.ID {
			if f.queue[i].Action == p.Action {
				f.queue[i] = p
				return
			}
			break
		}
	}
	f.queue = append(f.queue, p)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *feed) run() {
	defer close(f.done)
	for range f.wake {
		f.mu.Lock()
		batch, closed := f.queue, f.closed
		f.queue = nil
		f.mu.Unlock()
		for _, p := range batch {
			f.to(p)
		}
		if closed {
			return
		}
	}
}

// close delivers what is left and ends the feed.
func (f *feed) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
	<-f.done
}
