// Command dhow is the command line: docker's commands and the machine's.
package main

import (
	"context"
	"os"

	"dhow/host/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stderr))
}
