"Recipes: their settings are the published ones, every setting does something, runs go on and repeat"
import inspect
import json
import re

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.vision.core import TensorImage
from torch import nn

import reid_nb.train.recipes as recipes
import reid_nb.train.settings as settings
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.losses import batch_hard_triplet
from reid_nb.models.layers import ReidModel
from reid_nb.train.recipes import RECIPES, SETTINGS, add_recipe, load_recipe, recipe_factor, recipe_learner, recipe_settings

OURS = ('ide', 'triplet_baseline', 'center_2018', 'osnet_softmax', 'osnet_ain_dg', 'bag_of_tricks', 'agw', 'transreid')
KEYS = re.findall(r'^    (\w+)=\(', inspect.getsource(settings), re.M) # other modules add settings of their own
SMALL = dict(model='osnet_x0_25', weights=None, size=(32, 16), bs=8, seed=0, device='cpu')
BODY = dict(SMALL, model='timm/resnet10t', size=(64, 32))
VIT = dict(BODY, model='transreid_vit_tiny')


@pytest.fixture(scope='module')
def items(tmp_path_factory):
    return synth_people(tmp_path_factory.mktemp('people'), n_ids=12, n_cams=2, per_cam=2, distractors=0, junk=0, size=(32, 16))


class Net(ReidModel): # as small as can be
    new_layers, n_feats = ('classifier',), 4
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.fc, self.classifier = nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 6)
    def feature_maps(self, x): return self.bn(self.conv(x))
    def embed(self, x): return self.fc(self.pool(self.feature_maps(x)))


def tiny(): return dict(SMALL, model=Net())


def quiet(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return learn.fit_recipe(*args, **kwargs)


# ---------------------------------------------------------------- published values

CODE_2018 = 'defaults of train_img_model_*.py and its transforms, deep-person-reid at afbfdbf, March 2018'
ALL_2018 = dict(model='resnet50_2018', weights='imagenet', size=[256, 128], bs=32, test_bs=100, flip=.5, translate=.5, erase=0., jitter=0., opt='adam', lr=3e-4, wd=5e-4, epochs=60,
                schedule='single_step', step=20, gamma=.1, warmup_epochs=0, fixbase_epoch=0, label_smoothing=.1, id_weight=1., seed=1, metric='euclidean')
YAML = 'configs/im_{}_softmax_256x128_amsgrad{}.yaml, with the defaults of scripts/default_config.py, Torchreid 1.4'
NINE = dict(weights='imagenet', size=[256, 128], sampler='random', flip=.5, translate=0., erase=0., opt='amsgrad', wd=5e-4, mom=.9, sqr_mom=None, id_weight=1., label_smoothing=.1, triplet=0.,
            center=0., gamma=.1, warmup_epochs=0, staged_lr=False, seed=1, rerank=False, flip_test=False, eval_every=None)
OSNET = dict(lr=.0015, epochs=150, bs=64, fixbase_epoch=10, open_layers=['classifier'], schedule='single_step', step=60, test_bs=300, jitter=0., metric='euclidean')
TINY = dict(OSNET, lr=.003, epochs=180, bs=128, step=80)
R50 = dict(OSNET, model='resnet50_fc512', lr=3e-4, epochs=60, bs=32, fixbase_epoch=5, step=20, test_bs=100)
AIN = {**OSNET, **dict(model='osnet_ain_x1_0', epochs=100, schedule='cosine', step=20, end=0., jitter=1., metric='cosine')}
BAG = dict(weights='imagenet', size=[256, 128], model='timm/resnet50.tv_in1k', last_stride=1, neck='bnneck', after_neck=True, sampler='identity', bs=64, k=4, flip=.5, pad=10, erase=.5,
           erase_area=[.02, .4], erase_fill=[.485, .456, .406], translate=0., id_weight=1., label_smoothing=.1, triplet=1., margin=.3, normalize=False, center=.0005, center_lr=.5, opt='adam', lr=3.5e-4,
           wd=5e-4, bias_lr=1., epochs=120, schedule='multi_step', step=[40, 70], gamma=.1, warmup_epochs=10, warmup='linear', warmup_start=.01, warmup_by='epoch', metric='cosine', rerank=False)

PUBLISHED = [ # recipe, variant, values, source
    ('ide', None, dict(ALL_2018, sampler='random', triplet=0., center=0.), CODE_2018),
    ('triplet_baseline', None, dict(ALL_2018, sampler='identity_2018', k=4, triplet=1., margin=.3, mining='hard', normalize=False, center=0.), CODE_2018),
    ('triplet_baseline', 'htri', dict(ALL_2018, sampler='identity_2018', k=4, triplet=1., margin=.3, id_weight=0.), '--htri-only, deep-person-reid at 952e99e'),
    ('center_2018', None, dict(ALL_2018, sampler='random', triplet=0., center=.0005, center_lr=.5), CODE_2018),
    ('osnet_softmax', 'osnet_x1_0', {**NINE, **OSNET, 'model': 'osnet_x1_0'}, YAML.format('osnet_x1_0', '')),
    ('osnet_softmax', 'osnet_x1_0_cosine', {**NINE, **OSNET, 'model': 'osnet_x1_0', 'epochs': 250, 'schedule': 'cosine', 'step': 20}, YAML.format('osnet_x1_0', '_cosine')),
    ('osnet_softmax', 'osnet_x0_75', {**NINE, **OSNET, 'model': 'osnet_x0_75'}, YAML.format('osnet_x0_75', '')),
    ('osnet_softmax', 'osnet_x0_5', {**NINE, **TINY, 'model': 'osnet_x0_5'}, YAML.format('osnet_x0_5', '')),
    ('osnet_softmax', 'osnet_x0_25', {**NINE, **TINY, 'model': 'osnet_x0_25'}, YAML.format('osnet_x0_25', '')),
    ('osnet_softmax', 'osnet_ibn_x1_0', {**NINE, **OSNET, 'model': 'osnet_ibn_x1_0', 'jitter': 1.}, YAML.format('osnet_ibn_x1_0', '')),
    ('osnet_softmax', 'osnet_ain_x1_0_cosine', {**NINE, **AIN}, YAML.format('osnet_ain_x1_0', '_cosine')),
    ('osnet_softmax', 'r50', {**NINE, **R50}, YAML.format('r50', '')),
    ('osnet_softmax', 'r50fc512', {**NINE, **R50, 'open_layers': ['fc', 'classifier']}, YAML.format('r50fc512', '')),
    ('osnet_ain_dg', None, {**NINE, **AIN}, YAML.format('osnet_ain_x1_0', '_cosine')),
    ('osnet_ain_dg', 'several_sources', {**NINE, **AIN, 'epochs': 50}, 'docs/MODEL_ZOO.md, multi-source domain generalization: max_epoch=50'),
    ('bag_of_tricks', None, BAG, 'configs/softmax_triplet_with_center.yml of reid-strong-baseline; Luo et al., CVPRW 2019, section 3'),
    ('bag_of_tricks', 'baseline', {**BAG, 'last_stride': 2, 'neck': 'none', 'after_neck': None, 'erase': 0., 'label_smoothing': 0., 'center': 0., 'warmup_epochs': 0}, 'configs/baseline.yml of reid-strong-baseline'),
    ('agw', None, {**BAG, 'pool': 'gem', 'non_local': True, 'mining': 'weighted'}, 'configs/AGW_baseline.yml of ReID-Survey; Ye et al., TPAMI 2021, section 4'),
    ('transreid', None, dict(weights='imagenet', size=[256, 128], model='transreid_vit_base', stride=12, jigsaw=4, cam_scale=3., drop_path=.1, after_neck=False, sampler='identity', bs=64, k=4, flip=.5,
                             pad=10, erase=.5, mean=[.5] * 3, std=[.5] * 3, id_weight=1., label_smoothing=0., triplet=1., margin=None, first_head=.5, opt='sgd', lr=.008, mom=.9, wd=1e-4, bias_lr=2.,
                             epochs=120, schedule='cosine', end=.002, warmup_epochs=5, warmup_start=.01, warmup_by='epoch', seed=1234, metric='cosine', rerank=False),
     'configs/Market/vit_transreid_stride.yml and config/defaults.py, solver/scheduler_factory.py, loss/make_loss.py of TransReID'),
]


@pytest.mark.parametrize('recipe,variant,values,source', PUBLISHED, ids=lambda o: o if isinstance(o, str) and len(o) < 24 else '')
def test_settings_are_the_published_ones(recipe, variant, values, source):
    s = recipe_settings(recipe, variant=variant)
    assert {k: (s[k], v) for k, v in values.items() if s[k] != v} == {}, source


def test_every_recipe_has_published_values():
    assert {o for o, *_ in PUBLISHED} == set(OURS)
    known = {(o, v) for o, v, *_ in PUBLISHED}
    assert set(RECIPES['osnet_softmax'].variants) == {v for o, v in known if o == 'osnet_softmax'}


def test_defaults_are_torchreids(): # scripts/default_config.py, Torchreid 1.4
    want = dict(model='resnet50', size=[256, 128], sampler='random', k=4, flip=.5, opt='adam', lr=3e-4, wd=5e-4, epochs=60, bs=32, fixbase_epoch=0, staged_lr=False, base_lr_mult=.1, schedule='single_step',
                step=20, gamma=.1, seed=1, mom=.9, dampening=0., nesterov=False, label_smoothing=.1, margin=.3, test_bs=100, metric='euclidean', rerank=False, n_domains=1)
    assert {k: (SETTINGS[k][0], v) for k, v in want.items() if SETTINGS[k][0] != v} == {}


def test_the_ladder_adds_one_trick_at_a_time(): # Table 1 of Luo et al.
    names = ['baseline', '+warmup', '+erase', '+smooth', '+stride', '+neck', 'all']
    steps = [recipe_settings('bag_of_tricks', variant=o) for o in names]
    changed = [{k for k in a if a[k] != b[k]} - {'variant'} for a, b in zip(steps, steps[1:])]
    assert changed == [{'warmup_epochs'}, {'erase'}, {'label_smoothing'}, {'last_stride'}, {'neck', 'after_neck'}, {'center'}]


def test_published_networks(monkeypatch): # what is built where nothing is made smaller; without downloading
    asked = []
    def fake(name, n_classes, **kw): asked.append((name, kw)); return nn.Linear(1, 1)
    monkeypatch.setattr(settings, 'create_model', fake)
    monkeypatch.setitem(settings.VITS, 'transreid_vit_base', lambda n, **kw: fake('vit', n, **kw))
    for o in ('ide', 'bag_of_tricks', 'agw', 'transreid'): settings.recipe_model(recipe_settings(o), 751, 6)
    both = dict(weights='imagenet', size=(256, 128))
    assert asked[0] == ('resnet50_2018', both)
    assert asked[1] == ('timm/resnet50.tv_in1k', dict(both, pool='avg', neck='bnneck', after_neck=True, last_stride=1))
    assert asked[2] == ('timm/resnet50.tv_in1k', dict(both, pool='gem', neck='bnneck', after_neck=True, last_stride=1, non_local=True))
    assert asked[3] == ('vit', dict(size=(256, 128), pretrained=True, pretrained_cfg='orig_in21k_ft_in1k', after_neck=False, stride=12, jigsaw=4, cam_scale=3., n_cams=6, drop_path_rate=.1))


# ---------------------------------------------------------------- they train

@pytest.mark.parametrize('recipe,changes', [('ide', SMALL), ('triplet_baseline', SMALL), ('triplet_baseline', dict(SMALL, variant='htri')), ('center_2018', SMALL),
                                            ('osnet_softmax', dict(SMALL, fixbase_epoch=1)), ('osnet_ain_dg', dict(SMALL, model='osnet_ain_x0_25', fixbase_epoch=0)), ('bag_of_tricks', BODY),
                                            ('bag_of_tricks', dict(BODY, variant='baseline')), ('agw', dict(BODY, non_local=False)), ('transreid', VIT)], ids=lambda o: o if isinstance(o, str) else o.get('variant', ''))
def test_trains(items, recipe, changes):
    learn = RECIPES[recipe](items, **changes)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    quiet(learn, 1 + learn.settings['fixbase_epoch'])
    assert len(learn.recorder.losses) >= 2 and np.isfinite(learn.recorder.losses).all()
    moved = [k for k, v in learn.model.named_parameters() if not torch.equal(v, before[k])]
    assert any('classifier' in o for o in moved) == (changes.get('variant') != 'htri') and any('classifier' not in o for o in moved)
    assert learn.settings['recipe'] == recipe and json.loads(json.dumps(learn.settings)) == learn.settings
    assert learn.evaluate_recipe(progress=False).metrics['mAP'] == pytest.approx(learn.recorder.values[-1][-2], abs=1e-5) # as in the table, cameras and all


@pytest.mark.parametrize('recipe', OURS)
def test_settings_can_be_written(recipe):
    for variant in [None, *RECIPES[recipe].variants]:
        s = recipe_settings(recipe, variant=variant, size=(64, 32))
        assert json.loads(json.dumps(s)) == s and s['size'] == [64, 32] and set(SETTINGS) < set(s)


def test_same_seed_same_figures(items):
    def figures(seed):
        learn = quiet(RECIPES['triplet_baseline'](items, **{**SMALL, 'seed': seed}), 1)
        return learn.recorder.values[-1], learn.model.classifier.weight.detach()
    (a, wa), (b, wb), (c, wc) = figures(3), figures(3), figures(4)
    assert list(a) == list(b) and torch.equal(wa, wb) and not torch.equal(wa, wc)


# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize('wrong,near', [('epoch', 'epochs'), ('margn', 'margin'), ('weight_decay', 'wd'), ('p', 'bs'), ('pretrained', 'weights'), ('stepsize', 'step')])
def test_unknown_keyword(items, wrong, near):
    with pytest.raises(ValueError, match=f"no setting '{wrong}'; did you mean .*'{near}'"): RECIPES['ide'](items, **{wrong: 1})
    with pytest.raises(ValueError, match=near): add_recipe({wrong: 1})


@pytest.mark.parametrize('changes,says', [(dict(bs=10, sampler='pk'), 'no whole number of people'), (dict(sampler='rnd'), '`sampler` must be one of'), (dict(mining='harder'), '`mining` must be one of'),
                                          (dict(id_weight=0.), 'there is no loss'), (dict(id_weight=0., triplet=1., fixbase_epoch=1, sampler='pk'), 'fixbase_epoch=0'), (dict(bs=512), 'make no batch'),
                                          (dict(opt='adamm'), "did you mean 'adam'"), (dict(neck='bnneck'), 'takes no `neck`'), (dict(first_head=.5), 'several heads'), (dict(variant='x'), 'one version only'),
                                          (dict(amp='fp8'), '`amp` must be'), (dict(open_layers=['fcc'], fixbase_epoch=1), 'fcc')])
def test_settings_that_do_not_fit(items, changes, says):
    with pytest.raises(ValueError, match=says): quiet(recipe_learner(items, **{**SMALL, **changes}), 1)


def test_unknown_recipe_and_variant():
    with pytest.raises(ValueError, match="did you mean 'bag_of_tricks'"): recipe_settings('bag_of_trick')
    with pytest.raises(ValueError, match='It has osnet_x1_0, '): recipe_settings('osnet_softmax', variant='x1')


def test_other_learners_have_no_settings(items):
    from reid_nb.train.learner import reid_learner
    learn = reid_learner(settings.recipe_dls(items, recipe_settings(**SMALL)), 'osnet_x0_25')
    for o in (learn.show_settings, learn.fit_recipe, learn.evaluate_recipe):
        with pytest.raises(ReidError, match='not made by a recipe'): o()


def test_loaders_that_exist(items):
    dls = ReidDataLoaders.from_items(items, size=(32, 16), p=2, k=2, device='cpu')
    learn = quiet(recipe_learner(dls, 'triplet_baseline', model='osnet_x0_25', weights=None), 1)
    assert learn.dls is dls and learn.settings['bs'] == 4 and learn.settings['sampler'] == 'PKSampler' and learn.settings['flip'] is None and learn.settings['size'] == [32, 16]
    with pytest.raises(ValueError, match='erase: the loaders exist already'): recipe_learner(dls, model='osnet_x0_25', weights=None, erase=.5)


def test_a_model_of_ones_own(items):
    from reid_nb.models.zoo import create_model
    model = create_model('osnet_x0_25', 6)
    learn = RECIPES['ide'](items, **{**SMALL, 'model': model})
    assert learn.model is model and learn.settings['model'] == 'OSNet'


# ---------------------------------------------------------------- every setting does something

def plain(o, depth=3): # what an object is made of, as text
    if isinstance(o, (int, float, str, bool, type(None))): return repr(o)
    if isinstance(o, torch.Tensor): return f'{tuple(o.shape)} {float(o.float().sum()):.6g} {o.reshape(-1)[:4].tolist()}'
    if isinstance(o, nn.Module): return repr(o)
    if isinstance(o, (list, tuple)): return [plain(v, depth - 1) for v in o]
    if isinstance(o, dict): return {k: plain(v, depth - 1) for k, v in sorted(o.items(), key=str)} if depth > 0 else ''
    return f'{type(o).__name__} {plain({k: v for k, v in getattr(o, "__dict__", {}).items() if k not in ("learn", "_name", "nm")}, depth - 1) if depth > 0 else ""}'

def parts(learn): # all that settings can reach
    s, dl, opt = learn.settings, learn.dls.train, learn.opt or learn.create_opt() or learn.opt
    cbs = {type(o).__name__: plain(o) for o in learn.cbs if type(o).__name__ not in ('Recorder', 'ProgressCallback', 'TrainEvalCallback', 'CastToTensor')}
    model = [repr(learn.model), [(k, plain(v)) for k, v in learn.model.state_dict().items()], [(k, v.after_neck) for k, v in learn.model.named_modules() if hasattr(v, 'after_neck')],
             [o.scale for o in learn.model.modules() if type(o).__name__ == 'CameraEmbedding']]
    return dict(size=learn.dls.size, sampler=plain({k: v for k, v in vars(dl.sampler).items() if isinstance(v, (int, str))} | dict(kind=type(dl.sampler).__name__, rule=getattr(getattr(dl.sampler, 'rule', None), '__name__', ''))),
                tfms=[plain(o) for o in dl.after_batch.fs], valid=(learn.dls.valid.bs, learn.dls.valid.fake_l.num_workers), cache=dl.cache is None, model=model, loss=repr(learn.loss_func), loss_parts=plain(learn.loss_func),
                cbs=cbs, groups=[len(o) for o in opt.param_lists], hypers=plain([dict(o) for o in opt.hypers]), opt=type(opt.opt).__name__, defaults=plain(opt.opt.defaults), parts=plain(getattr(opt, 'parts', None)),
                rates=[round(recipe_factor(s)(i / 4), 9) for i in range(4 * 70)])

SGD, PEOPLE, TRI = dict(opt='sgd'), dict(sampler='pk'), dict(sampler='pk', triplet=1.)
EFFECTS = { # setting: (another value, the context in which it counts)
    'size': ((48, 16), {}), 'sampler': ('pk', {}), 'bs': (4, {}), 'k': (2, PEOPLE), 'n_domains': (2, dict(sampler='domain')), 'flip': (0., {}), 'translate': (.5, {}), 'pad': (2, {}), 'patch': (.5, {}),
    'jitter': (.5, {}), 'pca': (.5, {}), 'gray': (.5, {}), 'erase': (.5, {}), 'erase_area': ([.1, .2], dict(erase=.5)), 'erase_fill': ('noise', dict(erase=.5)), 'mean': ([.5] * 3, {}), 'std': ([.5] * 3, {}),
    'test_bs': (7, {}), 'num_workers': (1, {}), 'model': ('osnet_x0_5', SMALL), 'pool': ('gem', BODY), 'neck': ('none', BODY), 'after_neck': (False, BODY), 'last_stride': (1, BODY),
    'ibn': ('a', BODY), 'non_local': (True, dict(BODY, model='timm/resnet26')), 'mixstyle': (True, BODY), 'stride': (12, VIT), 'jigsaw': (2, VIT), 'cam_scale': (2., VIT), 'drop_path': (.3, VIT), 'id_weight': (.5, {}), 'label_smoothing': (0., {}),
    'triplet': (.5, PEOPLE), 'margin': (None, TRI), 'mining': ('weighted', TRI), 'normalize': (True, TRI), 'center': (.1, {}), 'center_lr': (.1, dict(center=.1)), 'first_head': (.5, VIT), 'mix': ('mixup', {}),
    'head': ('arcface', SMALL), 'head_s': (10., dict(SMALL, head='arcface')), 'head_m': (.1, dict(SMALL, head='arcface')), 'opt': ('sgd', {}), 'lr': (1e-3, {}), 'wd': (0., {}), 'mom': (.5, {}), 'sqr_mom': (.9, {}), 'dampening': (.5, SGD),
    'nesterov': (True, SGD), 'wd_bn_bias': (False, {}), 'bias_lr': (2., {}), 'staged_lr': (True, {}), 'new_layers': (['fc', 'classifier'], dict(staged_lr=True)), 'base_lr_mult': (.5, dict(staged_lr=True)),
    'fixbase_epoch': (1, {}), 'open_layers': (['fc'], dict(fixbase_epoch=1)), 'clip': (1., {}), 'accumulate': (2, {}), 'chunk': (4, {}), 'schedule': ('cosine', {}), 'step': (7, {}), 'gamma': (.5, {}),
    'end': (.1, dict(schedule='cosine')), 'by': ('iteration', dict(schedule='cosine')), 'warmup_epochs': (3, {}), 'warmup': ('constant', dict(warmup_epochs=3)), 'warmup_start': (.5, dict(warmup_epochs=3)),
    'warmup_by': ('iteration', dict(warmup_epochs=3)), 'epochs': (30, dict(schedule='cosine')), 'ema': (.9, {}), 'swa': (.5, {}), 'seed': (5, SMALL), 'metric': ('cosine', {}), 'protocol': ('all', {}), 'eval_every': (2, {}),
    'channels_last': (False, {}), 'amp': ('bf16', {}),
}
ELSEWHERE = {'variant', 'cache', 'device', 'weights', 'flip_test', 'rerank', 'rerank_k1', 'rerank_k2', 'rerank_lambda', 'compile', 'grad_checkpoint', 'sync_bn'} # tests of their own


def test_no_setting_is_forgotten(): assert set(KEYS) == set(EFFECTS) | ELSEWHERE and not set(EFFECTS) & ELSEWHERE


@pytest.fixture(scope='module')
def before(items): # parts of a learner of a context
    known = {}
    def get(context):
        if (key := json.dumps(context, sort_keys=True)) not in known: known[key] = parts(recipe_learner(items, **{**tiny(), **context}))
        return known[key]
    return get


def test_equal_settings_make_equal_parts(items, before): assert parts(recipe_learner(items, **tiny())) == before({}) and parts(recipe_learner(items, **SMALL)) == before(SMALL)


@pytest.mark.parametrize('key', EFFECTS)
def test_setting_has_an_effect(items, before, key):
    value, context = EFFECTS[key]
    old, new = before(context), parts(recipe_learner(items, **{**tiny(), **context, key: value}))
    assert [k for k in old if old[k] != new[k]], f'{key}={value!r} changes nothing'


def test_weights_are_loaded(items, tmp_path):
    learn = recipe_learner(items, **SMALL)
    torch.save(learn.model.state_dict(), tmp_path / 'w.pth')
    other = recipe_learner(items, **{**SMALL, 'seed': 7, 'weights': str(tmp_path / 'w.pth')})
    assert torch.equal(other.model.classifier.weight, learn.model.classifier.weight)


def test_weights_of_a_transformer(items, tmp_path):
    learn = recipe_learner(items, **VIT)
    torch.save(learn.model.state_dict(), tmp_path / 'w.pth')
    other = recipe_learner(items, **{**VIT, 'seed': 7, 'weights': str(tmp_path / 'w.pth')})
    assert torch.equal(other.model.body.blocks[3].attn.qkv.weight, learn.model.body.blocks[3].attn.qkv.weight)


def test_cache(items, tmp_path):
    learn = recipe_learner(items, **tiny(), cache=str(tmp_path))
    quiet(learn, 1)
    assert learn.dls.train.cache is not None and list(tmp_path.glob('*.pixels'))


def test_options_of_scale(items, monkeypatch):
    from contextlib import nullcontext
    asked = []
    monkeypatch.setattr(recipes, 'compile_model', asked.append)
    learn, plain = recipe_learner(items, **SMALL, grad_checkpoint=True, compile=True), recipe_learner(items, **SMALL)
    assert any('forward' in o.__dict__ for o in learn.model.modules()) and not any('forward' in o.__dict__ for o in plain.model.modules())
    assert asked.pop() is learn and not asked
    monkeypatch.setattr(recipes, 'share_work', lambda learn, sync_bn: asked.append(sync_bn) or nullcontext())
    for o in (True, False): quiet(recipe_learner(items, **tiny(), sync_bn=o), 1)
    assert asked == [True, False]


def test_evaluation_settings(items):
    learn = recipe_learner(items, **tiny())
    def dist(**kw):
        learn.settings = {**recipe_settings(**SMALL), **kw}
        return learn.evaluate_recipe(progress=False).ranking(0, 5).dist.to_numpy()
    base, again = dist(), dist(rerank=True)
    for kw in (dict(flip_test=True), dict(metric='cosine'), dict(rerank=True)): assert not np.allclose(dist(**kw), base)
    for kw in (dict(rerank_k1=4), dict(rerank_k2=1), dict(rerank_lambda=.9)): assert not np.allclose(dist(rerank=True, **kw), again)
    learn.settings = {**recipe_settings(**SMALL), 'rerank': True, 'metric': 'cosine'}
    from reid_nb.retrieve.rerank import k_reciprocal
    res, plain_res = learn.evaluate_recipe(progress=False), learn.evaluate(metric='cosine', progress=False)
    want = np.sort(k_reciprocal(plain_res.q_feat, plain_res.g_feat, metric='cosine')[0])[:3]
    assert np.allclose(res.ranking(0, 3, removed=True).dist, want) and 're-ranked' in res.metric


# ---------------------------------------------------------------- what a setting means

def test_bias_learns_faster(items):
    learn = recipe_learner(items, **SMALL, bias_lr=2., staged_lr=True, opt='sgd', lr=.01)
    learn.create_opt()
    rate = {id(p): o['lr'] for o, ps in zip(learn.opt.hypers, learn.opt.param_lists) for p in ps}
    names = dict(learn.model.named_parameters())
    assert rate.keys() == {id(o) for o in names.values()}
    got = {k: rate[id(p)] for k, p in names.items()}
    assert got['classifier.weight'] == .01 and got['classifier.bias'] == .02 and got['conv1.conv.weight'] == pytest.approx(.001) and got['conv1.bn.bias'] == pytest.approx(.002)


def test_rates_of_a_run(items):
    seen = []
    class Look(Callback):
        def after_batch(self):
            if self.training: seen.append((self.epoch, float(self.opt.hypers[0]['lr'])))
    quiet(recipe_learner(items, **tiny(), schedule='multi_step', step=[2], warmup_epochs=1, warmup_start=.5, lr=.01), 3, cbs=Look())
    assert {e: round(r, 9) for e, r in seen} == {0: .005, 1: .01, 2: .001}


def test_losses_of_transreid(items): # half for the whole picture, half for its parts, as in its loss/make_loss.py
    learn = RECIPES['transreid'](items, **VIT)
    heads = [(torch.randn(8, 192), torch.randn(8, 6)) for _ in range(5)]
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    xent = [nn.functional.cross_entropy(o, y) for _, o in heads]
    tri = [batch_hard_triplet(f, y, None) for f, _ in heads]
    assert float(learn.loss_func(heads, y)) == pytest.approx(float(.5 * xent[0] + .5 * sum(xent[1:]) / 4), abs=1e-5)
    cb = learn.metric_loss
    got = cb.weight * torch.stack([f(x, y) for f, (x, _) in zip(cb.losses, heads)]).mean()
    assert len(cb.losses) == 5 and float(got) == pytest.approx(float(.5 * tri[0] + .5 * sum(tri[1:]) / 4), abs=1e-5)


def test_cameras_reach_the_model(items):
    learn, seen = RECIPES['transreid'](items, **VIT), []
    number = {str(p): int(c) for p, c in zip(items.path, items.cam)}
    learn.model.cams.register_forward_pre_hook(lambda m, args: seen.append((learn.training, args[1].tolist())))
    quiet(learn, 1)
    test = learn.dls.test_items
    first = min(items.cam)
    assert sum((o for train, o in seen if not train), []) == [number[str(p)] - first for p in test.path]
    assert set(sum((o for train, o in seen if train), [])) == {0, 1}
    with pytest.raises(ReidError, match='no training row has one'): RECIPES['transreid'](items.assign(cam=None), **VIT)


@pytest.mark.parametrize('sampler', [*settings._PEOPLE, *settings._OTHERS])
def test_samplers(items, sampler):
    dls = settings.recipe_dls(items, recipe_settings(**SMALL, sampler=sampler, k=2))
    x, y = dls.one_batch()
    assert len(x) == 8
    if sampler in settings._PEOPLE: assert sorted(y.unique(return_counts=True)[1].tolist()) == [2] * 4


def test_noise_covers_pixels_one_by_one():
    erase = next(o for o in settings.recipe_tfms(recipe_settings(erase=1., erase_fill='noise')) if isinstance(o, settings.RandomErase))
    torch.manual_seed(0)
    out = erase.encodes(TensorImage(torch.full((8, 3, 32, 16), 9.)))
    covered = out[out != 9.]
    share = len(covered) / out.numel()
    assert .02 < share < .4 and len(covered.unique()) > .99 * len(covered) and abs(float(covered.mean())) < .1 and abs(float(covered.std()) - 1) < .1


# ---------------------------------------------------------------- runs

class Stop(Callback):
    order = 99
    def after_epoch(self):
        if self.epoch == 0: raise KeyboardInterrupt


def test_a_run_goes_on(items, tmp_path):
    def run(folder, cbs=None, **more):
        return quiet(recipe_learner(items, **tiny(), center=.001, ema=.9, sampler='pk', triplet=1., k=2, **more), 3, folder=tmp_path / folder, cbs=cbs)
    whole = run('whole')
    with pytest.raises(KeyboardInterrupt): run('broken', Stop())
    rest = run('broken')
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()))
    run('broken', num_workers=0, test_bs=5) # what doesn't change a run may change
    with pytest.raises(ReidError, match='margin'): run('broken', margin=.5)


def test_load_recipe(items, tmp_path):
    learn = quiet(RECIPES['bag_of_tricks'](items, **BODY, eval_every=1, flip_test=True), 1, folder=tmp_path / 'run')
    from reid_nb.retrieve.results import ReidResults
    from reid_nb.train.embed import embed_items
    model, s = load_recipe(tmp_path / 'run')
    assert s['recipe'] == 'bag_of_tricks' and s['last_stride'] == 1 and s['n_classes'] == 6
    assert np.allclose(embed_items(model, items[-5:], s['size'], progress=False), learn.embed(items[-5:], progress=False), atol=1e-5)
    best, _ = load_recipe(tmp_path / 'run', best=True)
    assert best.state_dict().keys() == model.state_dict().keys()
    saved = ReidResults.load(tmp_path / 'run/results.npz')
    assert np.allclose(saved.q_feat, learn.evaluate(flip=True, metric='cosine', progress=False).q_feat, atol=1e-5) # as the settings rank
    with pytest.raises(ReidError, match='no run of a recipe'): load_recipe(tmp_path)
