package advice

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/replay"
	"github.com/flowaudit/flowaudit/policy/suggest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func suggestOptions(req *flowauditv1.SuggestRequest) (suggest.Options, error) {
	o := suggest.Options{
		Namespaces: req.GetNamespaces(), NoEgress: req.GetNoEgress(), NoIngress: req.GetNoIngress(), Mode: suggest.Mode(req.GetMode()),
		Isolation: suggest.Isolation(req.GetIsolation()), CIDRSlack: req.GetCidrSlack(), PortSlack: req.GetPortSlack(),
		ReadyAfter: time.Duration(req.GetReadyAfter()) * time.Millisecond, AcceptScans: req.GetAcceptScans(), Reject: req.GetReject(),
	}
	for _, w := range req.GetWorkloads() {
		o.Workloads = append(o.Workloads, flow.WorkloadName{Namespace: w.GetNamespace(), Kind: w.GetKind(), Name: w.GetName()})
	}
	for _, text := range req.GetClusterCidrs() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return o, fmt.Errorf("cluster_cidrs: %q is no CIDR", text)
		}
		o.ClusterCIDRs = append(o.ClusterCIDRs, p.Masked())
	}
	for _, text := range req.GetDnsCaches() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return o, fmt.Errorf("dns_caches: %q is no IP address", text)
		}
		o.DNSCaches = append(o.DNSCaches, a)
	}
	if text := req.GetCronJobs(); text != "" {
		objects, err := load(text)
		if err != nil {
			return o, fmt.Errorf("cron_jobs: %w", err)
		}
		o.Schedules = suggest.Schedules(objects.CronJobs)
	}
	return o, o.Validate()
}

func changeOf(req *flowauditv1.ReplayRequest) (*replay.Change, error) {
	c := &replay.Change{Whole: req.GetWhole(), Namespaces: req.GetNamespaces()}
	if text := req.GetManifests(); text != "" {
		objects, err := load(text)
		if err != nil {
			return nil, err
		}
		c.Apply = objects.Policies
	}
	for _, n := range req.GetDelete() {
		c.Delete = append(c.Delete, replay.Name{Namespace: n.GetNamespace(), Name: n.GetName()})
	}
	return c, c.Validate()
}
