"Settings from recipes, files and flags; Torchreid's files; the tables of what is called what"
import json

import pytest
from reid_nb.config import (RUN_OPTIONS, SCRIPTS_2018, TORCHREID, Option, all_options, all_recipes, as_kind, flags_2018, kinds_of, read_flat, read_settings, recipe_options,
                            settle, torchreid_keys, torchreid_settings, write_settings)
from reid_nb.core import ReidError
from reid_nb.train.recipes import SETTINGS, recipe_settings

# names of all keys that Torchreid 1.4 knows, and of all flags of the five scripts of March 2018
KEYS = '''model.name model.pretrained model.load_weights model.resume
data.type data.root data.sources data.targets data.workers data.split_id data.height data.width data.combineall data.transforms data.k_tfm data.norm_mean data.norm_std
data.save_dir data.load_train_targets market1501.use_500k_distractors cuhk03.labeled_images cuhk03.classic_split cuhk03.use_metric_cuhk03
sampler.train_sampler sampler.train_sampler_t sampler.num_instances sampler.num_cams sampler.num_datasets video.seq_len video.sample_method video.pooling_method
train.optim train.lr train.weight_decay train.max_epoch train.start_epoch train.batch_size train.fixbase_epoch train.open_layers train.staged_lr train.new_layers train.base_lr_mult
train.lr_scheduler train.stepsize train.gamma train.print_freq train.seed sgd.momentum sgd.dampening sgd.nesterov rmsprop.alpha adam.beta1 adam.beta2
loss.name loss.softmax.label_smooth loss.triplet.margin loss.triplet.weight_t loss.triplet.weight_x
test.batch_size test.dist_metric test.normalize_feature test.ranks test.evaluate test.eval_freq test.start_eval test.rerank test.visrank test.visrank_topk use_gpu'''.split()
FLAGS = '''-d --dataset -j --workers --height --width --seq-len --max-epoch --start-epoch --train-batch --test-batch --lr --learning-rate --lr-cent --weight-cent --stepsize --gamma
--weight-decay --margin --num-instances --htri-only -a --arch --pool --print-freq --seed --resume --evaluate --eval-step --save-dir --use-cpu --gpu-devices'''.split()
SCRIPTS = 'train_img_model_xent train_img_model_xent_htri train_img_model_cent train_vid_model_xent train_vid_model_xent_htri'.split()

# file, model, sources, targets, transforms, lr, epochs, batch, frozen epochs, layers open in them, schedule, steps, test batch, distance
NINE = '''osnet_x1_0 osnet_x1_0 market1501 market1501 random_flip 0.0015 150 64 10 classifier single_step 60 300 euclidean
osnet_x1_0_cosine osnet_x1_0 market1501 market1501 random_flip 0.0015 250 64 10 classifier cosine - 300 euclidean
osnet_x0_75 osnet_x0_75 market1501 market1501 random_flip 0.0015 150 64 10 classifier single_step 60 300 euclidean
osnet_x0_5 osnet_x0_5 market1501 market1501 random_flip 0.003 180 128 10 classifier single_step 80 300 euclidean
osnet_x0_25 osnet_x0_25 market1501 market1501 random_flip 0.003 180 128 10 classifier single_step 80 300 euclidean
osnet_ibn_x1_0 osnet_ibn_x1_0 market1501 dukemtmcreid random_flip,color_jitter 0.0015 150 64 10 classifier single_step 60 300 euclidean
osnet_ain_x1_0 osnet_ain_x1_0 market1501 market1501,dukemtmcreid random_flip,color_jitter 0.0015 100 64 10 classifier cosine - 300 cosine
r50 resnet50_fc512 market1501 market1501 random_flip 0.0003 60 32 5 classifier single_step 20 100 euclidean
r50_fc512 resnet50_fc512 market1501 market1501 random_flip 0.0003 60 32 5 fc,classifier single_step 20 100 euclidean'''.splitlines()


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path/name).write_text(text)
        return tmp_path/name
    return write


def test_the_tables_have_every_key_and_every_flag():
    assert set(torchreid_keys().index) == set(KEYS) and len(torchreid_keys()) == len(KEYS)
    assert set(' '.join(flags_2018().index).split()) == set(FLAGS)
    assert set(SCRIPTS_2018) == set(SCRIPTS) and set(SCRIPTS_2018.values()) <= set(all_recipes())
    known = set(all_options())
    for here, differs in [*zip(torchreid_keys().here, torchreid_keys().differs), *zip(flags_2018().here, flags_2018().differs)]:
        assert here or differs, 'a key without an equivalent must say why'
        assert {o for o in here.split(', ') if o} <= known, here


# a value that is not the default for each key, and what else must be said for it to count
OTHER = {'model.name': 'osnet_x0_5', 'model.load_weights': 'w.pth', 'model.resume': 'old.pth', 'data.type': 'video', 'data.transforms': ['random_erase'], 'data.norm_mean': [.5] * 3,
         'data.norm_std': [.5] * 3, 'sampler.train_sampler': 'RandomIdentitySampler', 'sampler.train_sampler_t': 'SequentialSampler', 'video.sample_method': 'random', 'video.pooling_method': 'max',
         'train.optim': 'sgd', 'train.lr_scheduler': 'cosine', 'loss.name': 'triplet', 'test.dist_metric': 'cosine', 'test.eval_freq': 5, 'train.open_layers': ['fc'], 'train.new_layers': ['fc'],
         'data.sources': ['cuhk03'], 'data.targets': ['cuhk03'], 'test.ranks': [1, 3]}
WITH = {'sampler.num_cams': {'sampler.train_sampler': 'RandomDomainSampler'}, 'sampler.num_datasets': {'sampler.train_sampler': 'RandomDatasetSampler'}, 'cuhk03.classic_split': {'data.sources': ['cuhk03']},
        **{k: {'data.type': 'video'} for k in KEYS if k.startswith('video.')}, **{k: {'loss.name': 'triplet'} for k in ('loss.triplet.weight_t', 'loss.triplet.weight_x')},
        'sgd.momentum': {'train.optim': 'sgd'}, 'rmsprop.alpha': {'train.optim': 'rmsprop'}}

@pytest.mark.parametrize('key', KEYS)
def test_no_key_of_torchreid_is_dropped_in_silence(key):
    default, more = TORCHREID[key].default, WITH.get(key, {})
    value = OTHER.get(key) or (not default if isinstance(default, bool) else f'{default}2' if isinstance(default, str) else [o * 2 for o in default] if isinstance(default, list) else default * 2 + 1)
    before = torchreid_settings(dict(more))
    try: after = torchreid_settings({**more, key: value})
    except ReidError as e:
        assert key in ('model.resume', 'train.start_epoch', 'data.k_tfm') and key in str(e)
        return
    assert after != before, f'{key}={value!r} changes nothing and nobody says so'
    if after[0] != before[0]: assert set(torchreid_keys().here[key].split(', ')) & {k for k in {**before[0], **after[0]} if before[0].get(k) != after[0].get(k)}, 'the table names another setting'
    assert set(after[0]) <= set(all_options())


@pytest.mark.parametrize('row', NINE, ids=lambda o: o.split()[0])
def test_the_nine_files_are_read_as_they_are(row, write):
    name, model, sources, targets, tfms, lr, epochs, bs, fixed, layers, schedule, step, test_bs, dist = row.split()
    def listed(o): return '[' + ', '.join(f"'{k}'" for k in o.split(',')) + ']'
    path = write(f'{name}.yaml', f'''model:
  name: '{model}'
  pretrained: True

data:
  type: 'image'
  sources: {listed(sources)}
  targets: {listed(targets)}
  height: 256
  width: 128
  combineall: False
  transforms: {listed(tfms)}
  save_dir: 'log/{name}'

loss:
  name: 'softmax'
  softmax:
    label_smooth: True

train:
  optim: 'amsgrad'
  lr: {lr}
  max_epoch: {epochs}
  batch_size: {bs}
  fixbase_epoch: {fixed}
  open_layers: {listed(layers)}
  lr_scheduler: '{schedule}'
''' + (f'  stepsize: [{step}]\n' if step != '-' else '') + f'''
test:
  batch_size: {test_bs}
  dist_metric: '{dist}'
  normalize_feature: False
  evaluate: False
  eval_freq: -1
  rerank: False''')
    done = settle(torchreid_config=path)
    s, run = done.settings, done.run
    assert done.notes == []
    assert (s['model'], s['weights'], s['opt'], s['lr'], s['epochs'], s['bs'], s['fixbase_epoch']) == (model, 'imagenet', 'amsgrad', float(lr), int(epochs), int(bs), int(fixed))
    assert (s['schedule'], s['open_layers'], s['test_bs'], s['metric']) == (schedule, layers.split(','), int(test_bs), dict(euclidean='sqeuclidean').get(dist, dist))
    assert step == '-' or s['step'] == int(step)
    assert (s['flip'], s['jitter'], s['erase'], s['translate']) == (.5, float('color_jitter' in tfms), 0, 0)
    assert (s['size'], s['wd'], s['triplet'], s['id_weight'], s['label_smoothing'], s['sampler'], s['eval_every'], s['seed']) == ([256, 128], 5e-4, 0, 1, .1, 'random', None, 1)
    assert (run['items'], run['targets'], run['out'], run['root']) == (sources.split(','), targets.split(','), f'log/{name}', 'reid-data')


def test_the_recipe_of_the_nine_files_is_what_they_say(write):
    "for those settings that count, `osnet_softmax` and the file agree"
    path = write('a.yaml', 'model: {name: osnet_x1_0}\ntrain: {optim: amsgrad, lr: 0.0015, max_epoch: 150, batch_size: 64, fixbase_epoch: 10, stepsize: [60]}\ntest: {batch_size: 300}')
    file, recipe = settle(torchreid_config=path).settings, recipe_settings('osnet_softmax')
    said = 'size sampler bs flip translate jitter erase erase_area erase_fill model weights id_weight label_smoothing triplet opt lr wd mom fixbase_epoch epochs schedule gamma seed step'.split()
    assert {k: file[k] for k in said} == {k: recipe[k] for k in said}


def test_a_file_of_torchreid_that_is_wrong_says_where(write):
    for text, words in (('train:\n  lr: 1\n  max_epochs: 3', 'line 3: there is no setting `train.max_epochs`. Did you mean `train.max_epoch`'), ('train:\n  lr: fast', 'line 2: `train.lr` must be a number'),
                        ('data:\n  transforms: [random_flop]', 'random_flop'), ('loss: {name: center}', 'loss.name'), ('model:\n  resume: x.pth', 'line 2: model.resume'), ('lr: 1', 'Did you mean')):
        with pytest.raises(ReidError, match='a.yaml|must be one of') as e: torchreid_settings(write('a.yaml', text))
        assert words in str(e.value), e.value
    assert torchreid_settings(dict(train=dict(lr_scheduler='multi_step', stepsize=[3, 5])))[0]['step'] == [3, 5]
    s, notes = torchreid_settings(dict(train=dict(stepsize=[3, 5], batch_size=30), sampler=dict(train_sampler='RandomIdentitySampler'), loss=dict(name='triplet')))
    assert (s['step'], s['bs'], len(notes)) == (5, 28, 2)


@pytest.mark.parametrize('suffix,text', [('yaml', 'lr: 3e-4\nepochs: 7\nmargin: null\nsize: [64, 32]\nflip_test: true\n'), ('toml', 'lr = 3e-4\nepochs = 7\nmargin = "none"\nsize = [64, 32]\nflip_test = true\n'),
                                         ('json', '{"lr": 3e-4, "epochs": 7, "margin": null, "size": [64, 32], "flip_test": true}')])
def test_the_three_kinds_of_file_say_the_same(write, suffix, text):
    assert read_settings(write(f'a.{suffix}', text)) == dict(lr=3e-4, epochs=7, margin=None, size=[64, 32], flip_test=True)


@pytest.mark.parametrize('name,text,words', [
    ('a.yaml', 'lr: 0.1\nmargn: 0.3\n', 'a.yaml, line 2: there is no setting `margn`. Did you mean `margin`'), ('a.toml', 'lr = 0.1\nepoch = 3\n', 'a.toml, line 2: there is no setting `epoch`'),
    ('a.yaml', 'lr: 0.1\nlr: 0.2\n', 'line 2: `lr` stands on line 1'), ('a.yaml', 'bs: 3.5\n', 'line 1: `bs` must be a whole number, not 3.5'), ('a.yaml', 'staged_lr: 1\n', 'must be true or false'),
    ('a.yaml', 'epochs: null\n', '`epochs` must be a whole number'), ('a.yaml', 'a: [', "can't be read"), ('a.yaml', '- 1', '`name: value`'), ('a.txt', 'lr: 1', 'must end with'),
    ('a.yaml', 'train: {lr: 1}', '--torchreid-config'), ('a.yaml', 'more: {lr: 1}', '`more.lr`. Did you mean `lr`')])
def test_wrong_files_say_what_and_where(write, name, text, words):
    with pytest.raises(ReidError) as e: read_settings(write(name, text))
    assert words in str(e.value), e.value


def test_flags_beat_files_beat_recipes(write):
    path, theirs = write('a.yaml', 'epochs: 30\nlr: 0.01\nmargin: 0.5\n'), write('t.yaml', 'train: {max_epoch: 9, lr: 0.5, gamma: 0.2}')
    done = settle('triplet_baseline', path, theirs, dict(lr='1e-3'))
    assert [done.settings[k] for k in ('lr', 'epochs', 'margin', 'gamma', 'triplet')] == [1e-3, 30, .5, .2, 0.]
    assert [done.origin[k] for k in ('lr', 'epochs', 'margin', 'gamma')] == ['flag', 'a.yaml', 'a.yaml', 't.yaml']
    done = settle('triplet_baseline', path)
    assert [done.settings[k] for k in ('lr', 'epochs', 'triplet')] == [.01, 30, 1.] and done.origin['triplet'] == 'recipe triplet_baseline'
    assert settle(config=write('b.yaml', 'recipe: ide')).settings['recipe'] == 'ide'
    assert settle('center_2018', write('b.yaml', 'recipe: ide')).settings['recipe'] == 'center_2018'
    assert settle('triplet_baseline', flags=dict(variant='htri')).settings['id_weight'] == 0.


def test_every_recipe_is_written_and_read_again(tmp_path):
    for name in all_recipes():
        done = settle(name, flags=dict(out='x y', items=['a.csv', 'ü: b']))
        again = settle(config=write_settings(done, tmp_path/'settings.yaml'))
        assert (again.settings, again.run) == (done.settings, done.run), name
        assert json.loads(json.dumps(again.settings)) == again.settings


def test_every_setting_has_kinds_that_fit_its_values():
    options = recipe_options()
    assert set(options) == set(SETTINGS) and not set(SETTINGS) & set(RUN_OPTIONS)
    for name in (None, *all_recipes()):
        for k, v in recipe_settings(name).items():
            if k != 'recipe': assert as_kind(k, v, options[k]) == v, (name, k, v)
    for k, (default, *_) in SETTINGS.items():
        if default is None: assert options[k].kinds != ('none',), f'{k} could be nothing else than none'


def test_values_are_read_as_what_is_wanted():
    for value, option, wanted in (('3e-4', Option(.1), 3e-4), (1, Option(.1), 1.), (60., Option(5), 60), ('60', Option(5), 60), ('true', Option(False), True), ('None', Option(.3, '', ('float', 'none')), None),
                                  (['40', '70'], Option(20, '', ('int', 'list')), [40, 70]), (40, Option(20, '', ('int', 'list')), 40), ('noise', Option([0.], '', ('list', 'str', 'float')), 'noise'), ('a', Option([]), ['a'])):
        assert as_kind('x', value, option) == wanted
    assert kinds_of(1, 2.) == ('float',) and kinds_of(True, None) == ('bool', 'none') and kinds_of((1, 2)) == ('list',)
    with pytest.raises(ReidError, match='a.yaml, line 4: `lr` must be a number'): as_kind('lr', [1], Option(.1), 'a.yaml, line 4')


def test_lines_of_nested_files(write):
    assert read_flat(write('a.yaml', '\na:\n  b: 1\n\n  c: {d: 2}\n'))[1] == {'a': 2, 'a.b': 3, 'a.c': 5, 'a.c.d': 5}
    assert read_flat(write('a.toml', '[a]\nb = 1\n[a.c]\nd = 2\n')) == ({'a.b': 1, 'a.c.d': 2}, {'a.b': 2, 'a.c.d': 4})
