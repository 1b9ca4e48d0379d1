// Command release makes what is installed: images as OCI archives with their bills of materials, and the kubectl plugin.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
)

func main() { os.Exit(run()) }

const usage = `Makes images without a container builder, or the kubectl plugin's archives.

Usage:
  release [flags] images|krew

Flags:
`

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	r := release{}
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.StringVar(&r.root, "source", "..", "flowaudit's source `directory`")
	flag.StringVar(&r.out, "out", "../bin/images", "`directory` to write to")
	flag.StringVar(&r.version, "version", "devel", "version, which becomes the images' tag")
	flag.StringVar(&r.repository, "repository", "ghcr.io/flowaudit", "`prefix` of the images' names")
	flag.StringVar(&r.architectures, "architectures", "amd64,arm64", "of the agent's image, comma-separated; the collector's is this machine's")
	flag.Parse()
	var err error
	switch {
	case flag.NArg() != 1:
		flag.Usage()
		return 2
	case flag.Arg(0) == "images":
		err = r.images(ctx)
	case flag.Arg(0) == "krew":
		err = r.krew(ctx)
	default:
		flag.Usage()
		return 2
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "release: %v\n", err)
		return 1
	}
	return 0
}

// release says what is made of what.
type release struct {
	root, out           string
	version, repository string
	architectures       string
}

// images makes the images of the agent and the collector.
func (r *release) images(ctx context.Context) error {
	var agent image
	agent.name = r.repository + "/flowaudit-agent:" + tag(r.version)
	for arch := range strings.SplitSeq(r.architectures, ",") {
		program, err := r.build(ctx, "flowaudit-agent", arch, false)
		if err != nil {
			return err
		}
		agent.platforms = append(agent.platforms, platform{arch: arch, files: agentFiles(program), entrypoint: "/flowaudit-agent", programs: []string{program}})
	}
	if err := r.write("flowaudit-agent", &agent); err != nil {
		return err
	}
	collector, err := r.collector(ctx)
	if err != nil {
		return err
	}
	return r.write("flowaudit-collector", collector)
}

// collector is linked with the C++ library of this machine, so its image is
// for machines of the same kind.
func (r *release) collector(ctx context.Context) (*image, error) {
	var programs []string
	for name, cgo := range map[string]bool{"flowaudit-collector": true, "flowaudit": false} {
		program, err := r.build(ctx, name, runtime.GOARCH, cgo)
		if err != nil {
			return nil, err
		}
		programs = append(programs, program)
	}
	files, packages, err := collectorFiles(ctx, programs)
	if err != nil {
		return nil, err
	}
	return &image{
		name:      r.repository + "/flowaudit-collector:" + tag(r.version),
		platforms: []platform{{arch: runtime.GOARCH, files: files, entrypoint: "/flowaudit-collector", programs: programs, packages: packages}},
	}, nil
}

// write writes an image and its bill of materials.
func (r *release) write(name string, i *image) error {
	archive := filepath.Join(r.out, name+".tar")
	if err := i.archive(archive); err != nil {
		return fmt.Errorf("make image %s: %w", i.name, err)
	}
	for _, p := range i.platforms {
		bill, err := billOf(fmt.Sprintf("%s-%s", name, p.arch), r.version, p)
		if err == nil {
			err = os.WriteFile(filepath.Join(r.out, name+"-"+p.arch+".spdx.json"), bill, 0o644)
		}
		if err != nil {
			return fmt.Errorf("make the bill of materials of %s: %w", i.name, err)
		}
	}
	fmt.Println(archive, i.name)
	return nil
}

// tag is a version as an image's tag may be.
func tag(version string) string { return strings.NewReplacer("+", "-", "/", "-").Replace(version) }
