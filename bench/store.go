package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// benchStore sends flows to a collector, and asks it while more come.
func benchStore(ctx context.Context, o options) (all []result, err error) {
	dir := o.store
	if dir == "" {
		if dir, err = os.MkdirTemp(o.dir, "flowaudit-bench-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c, err := startCollector(ctx, dir, 1, "--data", filepath.Join(dir, "data"), "--retain", "0")
	if err != nil {
		return nil, err
	}
	before, err := c.query.Status(ctx, &flowauditv1.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	if missing := o.flows - int(before.GetFlows()); missing > 0 {
		r, err := c.ingest(ctx, missing, "duckdb")
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	asked, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	flows, err := c.stop(ctx)
	if err != nil {
		return nil, err
	}
	size, err := folderSize(filepath.Join(dir, "data"))
	all = append(all, result{fmt.Sprintf("disk, %d flows", flows), "duckdb", []string{fmt.Sprintf("%.1f bytes a flow", float64(size)/float64(flows))}})
	return append(all, asked...), err
}

func folderSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		size += info.Size()
		return err
	})
	return size, err
}
