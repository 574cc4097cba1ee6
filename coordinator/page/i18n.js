// i18n.js: the page's words in both languages. Elements with data-t get their text from here.

const words = {
  en: {
    skip: 'Skip to the playground', connecting: 'connecting', key: 'API key', language: 'Language',
    theme: 'Theme', theme_auto: 'as the system', theme_light: 'light', theme_dark: 'dark',
    playground: 'Playground', continue: 'Continue', fill: 'Fill blanks', chat: 'Chat',
    prompt: 'Prompt', prompt_fill: 'Text with blanks', prompt_chat: 'Your message',
    blanks_help: 'a few words, a sentence, the rest of the text',
    run: 'Run', stop: 'Stop', clear: 'Clear', answer: 'Answer', controls: 'Sampling',
    curl: 'The same with curl', copy: 'Copy', copied: 'Copied',
    fleet: 'Fleet', api: 'API description', metrics: 'Metrics',
    serving: 'serving', waiting_ranks: 'waiting for ranks', draining: 'draining',
    unreachable: 'not reachable', need_key: 'this server asks for an API key',
    max_tokens: 'New tokens at most', temperature: 'Temperature', top_p: 'Top p', top_k: 'Top k',
    min_p: 'Min p', repetition_penalty: 'Repetition penalty', seed: 'Seed', stop_text: 'Stop text',
    probabilities: 'Token probabilities', empty: 'as the server',
    decode_rate: 'tokens/s written', prefill_rate: 'tokens/s read', running: 'running',
    waiting: 'waiting', kv: 'KV cache in use', done_requests: 'requests finished',
    refused: 'refused', uptime: 'up for',
    plot_tokens: 'Tokens per second', plot_requests: 'Requests', plot_kv: 'KV cache, percent',
    written: 'written', read: 'read', last_minutes: 'the last {n} minutes',
    group: 'Group', rank: 'Rank', stage: 'Stage', state: 'State', host: 'Host', device: 'Device',
    step_age: 'Step age', ms_step: 'ms/step', weights: 'Weights', kv_memory: 'KV',
    restarts: 'Restarts', error: 'Last error', idle: 'idle', layers: 'layers',
    no_groups: 'No group of workers has joined yet.', blocks: '{used} of {total} KV blocks',
    working: 'working …', tokens_in: '{n} tokens, {s} s, {r} tokens/s', stopped: 'stopped',
    user: 'You', assistant: 'Model', probability: 'probability',
    forming: 'forming', ready: 'ready', degraded: 'degraded', gone: 'gone', absent: 'absent',
    loading: 'loading', loaded: 'loaded', joining: 'joining', failed: 'failed',
  },
  zh: {
    skip: '跳到试用区', connecting: '正在连接', key: 'API 密钥', language: '语言',
    theme: '主题', theme_auto: '跟随系统', theme_light: '浅色', theme_dark: '深色',
    playground: '试用', continue: '续写', fill: '填空', chat: '对话',
    prompt: '提示', prompt_fill: '带空的文本', prompt_chat: '你的消息',
    blanks_help: '几个词、一句话、余下的文本',
    run: '运行', stop: '停止', clear: '清空', answer: '回答', controls: '采样设置',
    curl: '对应的 curl 命令', copy: '复制', copied: '已复制',
    fleet: '集群', api: 'API 说明', metrics: '指标',
    serving: '服务中', waiting_ranks: '等待工作进程', draining: '正在排空',
    unreachable: '无法连接', need_key: '此服务器需要 API 密钥',
    max_tokens: '最多新词元', temperature: '温度', top_p: 'Top p', top_k: 'Top k',
    min_p: 'Min p', repetition_penalty: '重复惩罚', seed: '随机种子', stop_text: '停止文本',
    probabilities: '词元概率', empty: '由服务器决定',
    decode_rate: '词元/秒（生成）', prefill_rate: '词元/秒（读入）', running: '运行中',
    waiting: '排队中', kv: 'KV 缓存占用', done_requests: '已完成请求',
    refused: '已拒绝', uptime: '已运行',
    plot_tokens: '每秒词元数', plot_requests: '请求', plot_kv: 'KV 缓存，百分比',
    written: '生成', read: '读入', last_minutes: '最近 {n} 分钟',
    group: '组', rank: '进程', stage: '阶段', state: '状态', host: '主机', device: '设备',
    step_age: '当前步用时', ms_step: '毫秒/步', weights: '权重', kv_memory: 'KV',
    restarts: '重启次数', error: '最近错误', idle: '空闲', layers: '层',
    no_groups: '还没有工作进程组加入。', blocks: '已用 {used} / {total} 个 KV 块',
    working: '正在生成……', tokens_in: '{n} 个词元，{s} 秒，{r} 词元/秒', stopped: '已停止',
    user: '你', assistant: '模型', probability: '概率',
    forming: '组建中', ready: '就绪', degraded: '降级', gone: '已离开', absent: '不在',
    loading: '正在加载', loaded: '已加载', joining: '正在加入', failed: '失败',
  },
};

let language = 'en';
const listeners = [];

/** The text of a word, with {name} replaced from values. */
export function t(word, values = {}) {
  const text = Object.hasOwn(words[language], word) ? words[language][word] : word;
  return text.replace(/\{(\w+)\}/g, (all, name) => (name in values ? values[name] : all));
}

/** Runs fn now and whenever the language changes. */
export function onLanguage(fn) {
  listeners.push(fn);
  fn();
}

export function setLanguage(name) {
  language = name in words ? name : 'en';
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
  for (const element of document.querySelectorAll('[data-t]'))
    element.textContent = t(element.dataset.t);
  for (const fn of listeners)
    fn();
}

export function preferredLanguage() {
  return navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en';
}
