// versitygw is an S3 server over a folder: the program of that name without its stores in other clouds, and without its own tests, which are
// in the program.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	config := embedgw.Config{Quiet: true, MaxConnections: 1000, MaxRequests: 500, MultipartMaxParts: 10_000}
	flag.StringVar(&config.RootUserAccess, "access", "", "access key")
	flag.StringVar(&config.RootUserSecret, "secret", "", "secret key")
	flag.StringVar(&config.Region, "region", "us-east-1", "region")
	address := flag.String("address", "127.0.0.1:7070", "address to listen on")
	sidecar := flag.String("sidecar", "", "folder for metadata, where the file system has no extended attributes")
	flag.Parse()
	config.Ports = []string{*address}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	attributes, err := meta.NewSideCar(*sidecar)
	if err != nil {
		log.Fatal(err)
	}
	store, err := posix.New(flag.Arg(0), attributes, posix.PosixOpts{SideCarDir: *sidecar})
	if err != nil {
		log.Fatal(err)
	}
	if err := embedgw.RunVersityGW(ctx, store, &config); err != nil {
		log.Fatal(err)
	}
}
