#!/bin/sh
# The demo's study on the Ray cluster of compose.yaml: draws and packs three sites, has the head run the study, shows its
# log, and ends with its exit code. Arguments go to `cxrdist study run`: `--only 'random--*'`.
set -eu

out=/opt/cxrdist/runs/compose
until wget -q -t 1 -T 5 -O /dev/null http://head:8265/api/gcs_healthz; do sleep 1; done

for layout in chexpert nih14 vindr_cxr; do
  if [ ! -e "$out/shards/$layout/manifest.json" ]; then
    cxrdist phantom "$layout" "$out/raw/$layout" --patients 400 --difficulty 0.2 --size 128 --workers 2
    cxrdist pack "$layout" --root "$out/raw/$layout" --out "$out/shards/$layout" --size 96 --id-key "$out/private/id.key"
  fi
done

exec cxrdist study run launch/studies/demo.yaml --address http://head:8265 \
  --out "$out/study" --set shards_root="$out/shards" "$@"
