// Command dhowd is the background process that owns a machine. The CLI starts
// it on demand; launchd, systemd or a person may.
//
// Without --foreground it writes one line on standard output when its sockets
// accept ("ready") or when they cannot ("error: …"), and then closes it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/daemon"
	"dhow/internal/errdefs"
	"dhow/internal/version"
)

func main() {
	o := daemon.Options{Version: version.Version}
	flag.StringVar(&o.Home, "home", "", "dhow's `directory` (default $DHOW_HOME or ~/.dhow)")
	flag.StringVar(&o.Machine, "machine", config.DefaultMachine, "`name` of the machine")
	foreground := flag.Bool("foreground", false, "log to standard error too, and say nothing on standard output")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "dhowd takes no arguments (%q)\n", flag.Arg(0))
		os.Exit(2)
	}
	if *foreground {
		o.Stderr = os.Stderr
	} else {
		o.Ready = func() {
			fmt.Println(client.ReadyLine)
			_ = os.Stdout.Close()
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends dhowd at once, and the machine with it.
	context.AfterFunc(ctx, stop)
	if err := daemon.Run(ctx, o); err != nil {
		if *foreground {
			fmt.Fprintln(os.Stderr, "dhowd:", err)
		} else {
			fmt.Println(client.ErrorPrefix + errdefs.Sentence(err))
		}
		os.Exit(1)
	}
}
