// fake-dra-driver tells the scheduler and the kubelet of a test cluster about GPUs that do not exist, by Dynamic Resource Allocation.
//
// It uses the helper that real drivers use (k8s.io/dynamic-resource-allocation), so that everything around the devices is real: the
// ResourceSlices, the scheduler's allocation, the kubelet's calls to prepare a claim. Nothing can be computed on them. A CDI specification
// sets the variable that NVIDIA's driver sets; a container runtime without CDI (containerd before 1.7) leaves it out.
//
//	fake-dra-driver FAKE-A=2 FAKE-B=1     two GPUs with the attribute productName FAKE-A, one with FAKE-B
//
// NODE_NAME is the node it runs on.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

const (
	driverName = "gpu.fake.slipway.dev"
	cdiKind    = driverName + "/claim"
	cdiFolder  = "/var/run/cdi"
)

// devices reads "FAKE-A=2": so many devices of a product, numbered on from `next`.
func devices(wish string, next int) ([]resourceapi.Device, error) {
	product, number, found := strings.Cut(wish, "=")
	count, err := strconv.Atoi(number)
	if !found || err != nil || count < 1 || product == "" {
		return nil, fmt.Errorf("%q is not <product>=<count>, for example FAKE-A=2", wish)
	}
	made := make([]resourceapi.Device, 0, count)
	for i := range count {
		attributes := map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"productName": {StringValue: &product}}
		made = append(made, resourceapi.Device{Name: fmt.Sprintf("gpu-%d", next+i), Attributes: attributes})
	}
	return made, nil
}

// driver answers the kubelet.
type driver struct{ node string }

// PrepareResourceClaims writes a CDI specification for each claim.
func (d driver) PrepareResourceClaims(_ context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := map[types.UID]kubeletplugin.PrepareResult{}
	for _, claim := range claims {
		devices, err := d.prepare(claim)
		results[claim.UID] = kubeletplugin.PrepareResult{Devices: devices, Err: err}
	}
	return results, nil
}

func (d driver) prepare(claim *resourceapi.ResourceClaim) ([]kubeletplugin.Device, error) {
	var visible []string
	var prepared []kubeletplugin.Device
	for _, result := range claim.Status.Allocation.Devices.Results {
		if result.Driver != driverName {
			continue
		}
		visible = append(visible, d.node+"-"+result.Device)
		device := kubeletplugin.Device{Requests: []string{result.Request}, PoolName: result.Pool, DeviceName: result.Device}
		device.CDIDeviceIDs = []string{cdiKind + "=" + string(claim.UID)}
		prepared = append(prepared, device)
	}
	log.Printf("claim %s/%s gets %v", claim.Namespace, claim.Name, visible)
	edits := map[string]any{"env": []string{"NVIDIA_VISIBLE_DEVICES=" + strings.Join(visible, ",")}}
	spec := map[string]any{
		"cdiVersion": "0.5.0",
		"kind":       cdiKind,
		"devices":    []any{map[string]any{"name": string(claim.UID), "containerEdits": edits}},
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return prepared, os.WriteFile(cdiFile(claim.UID), text, 0o644)
}

// UnprepareResourceClaims removes the specifications.
func (d driver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	results := map[types.UID]error{}
	for _, claim := range claims {
		err := os.Remove(cdiFile(claim.UID))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		results[claim.UID] = err
	}
	return results, nil
}

// HandleError ends the driver on errors that do not pass, so that its pod tells them.
func (d driver) HandleError(_ context.Context, err error, message string) {
	log.Printf("%s: %v", message, err)
	if !errors.Is(err, kubeletplugin.ErrRecoverable) {
		os.Exit(1)
	}
}

func cdiFile(claim types.UID) string {
	return filepath.Join(cdiFolder, driverName+"-"+string(claim)+".json")
}

func run(ctx context.Context, wishes []string) error {
	node := os.Getenv("NODE_NAME")
	var all []resourceapi.Device
	for _, wish := range wishes {
		some, err := devices(wish, len(all))
		if err != nil {
			return err
		}
		all = append(all, some...)
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for _, folder := range []string{cdiFolder, filepath.Join(kubeletplugin.KubeletPluginsDir, driverName)} {
		if err := os.MkdirAll(folder, 0o750); err != nil {
			return err
		}
	}
	options := []kubeletplugin.Option{kubeletplugin.DriverName(driverName), kubeletplugin.KubeClient(client), kubeletplugin.NodeName(node)}
	helper, err := kubeletplugin.Start(ctx, driver{node}, options...)
	if err != nil {
		return err
	}
	defer helper.Stop()
	pool := resourceslice.Pool{Slices: []resourceslice.Slice{{Devices: all}}}
	if err := helper.PublishResources(ctx, resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{node: pool}}); err != nil {
		return err
	}
	log.Printf("published %d fake devices of %s", len(all), node)
	<-ctx.Done()
	return nil
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: fake-dra-driver <product>=<count>...")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}
