package product

import (
	"context"
	"path/filepath"

	"github.com/flowaudit/flowaudit/test/cluster"
)

// space is the namespace of flowaudit's service accounts.
const space = "flowaudit"

// grant gives the agent and the collector the rights that deploy/rbac says,
// and nothing more. It returns their kubeconfigs.
func grant(ctx context.Context, c *cluster.Cluster, root string) (agent, collector string, err error) {
	if err := c.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+space+"}\n"); err != nil {
		return "", "", err
	}
	if _, err := c.Kubectl(ctx, "", "apply", "--server-side", "-f", filepath.Join(root, "deploy", "rbac")); err != nil {
		return "", "", err
	}
	if agent, err = c.Kubeconfig(ctx, space, "flowaudit-agent"); err != nil {
		return "", "", err
	}
	collector, err = c.Kubeconfig(ctx, space, "flowaudit-collector")
	return agent, collector, err
}
