//go:build linux

package agent

import (
	"testing"
	"time"

	"dhow/guest/boot"
)

func TestInitGivesTheAgentTheTimeThatItsEndNeeds(t *testing.T) {
	// A second is for what is not bounded by itself: the database and the network.
	if boot.AgentGrace < endTimeout+time.Second {
		t.Errorf("init kills it after %v, its end may take %v", boot.AgentGrace, endTimeout)
	}
}
